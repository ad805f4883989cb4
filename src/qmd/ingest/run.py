"""Bring a collection up to date: find what changed, read only that, store it a batch at a time.

A batch is one transaction: a run that is killed keeps every batch it reported and the next run goes on from there.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

from qmd.config import Config
from qmd.errors import UsageError
from qmd.store.documents import FileStamp
from qmd.store.store import Store
from qmd.types import Collection, Document, Progress

BATCH_FILES = 1000
BATCH_BYTES = 8 << 20


class Found(Protocol):
    """A regular file, as `walk` finds it."""

    @property
    def path(self) -> str: ...
    @property
    def absolute(self) -> Path: ...
    @property
    def size(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...


class Skip(Protocol):
    """Something left out, and why."""

    @property
    def path(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that was not indexed in this run, with the reason."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What an update did, in files. `errors` could not be read; what the index held of them stays."""

    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    skipped: tuple[LeftOut, ...] = ()
    errors: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Steps:
    """The stages before the store, so that each can be replaced."""

    walk: Callable[[Collection, Config], Iterator[Found | Skip]]
    read: Callable[[Found, Config], bytes | Skip]
    parse: Callable[[str, bytes, Config], Document | Skip]


@dataclass(slots=True)
class _Run:
    store: Store
    collection: str
    config: Config
    steps: Steps
    progress: Progress
    done: int = 0
    total: int = 0
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    skipped: list[LeftOut] = field(default_factory=list)
    errors: list[LeftOut] = field(default_factory=list)
    recut: bool = False


def update(
    store: Store,
    collection: str,
    config: Config,
    progress: Progress | None = None,
    force: bool = False,
    *,
    steps: Steps | None = None,
) -> UpdateReport:
    """Make the index agree with the files of a collection.

    A file counts as unchanged when its size and mtime are as stored, else when its bytes hash as stored. A file that
    is gone while a new one has its bytes was renamed, unless they read otherwise under the new name. Where chunk sizes
    are configured otherwise than they were, every file is cut again, and `notes` says so. progress("index", files done,
    files to do) comes after the batch is kept. Raises UsageError when the folder is missing, or has become empty and
    `force` is not set.
    """
    where = store.collection(collection)
    run = _Run(store, collection, config, steps or default_steps(), progress or (lambda *_: None))
    if not os.path.isdir(where.root):
        raise UsageError(
            f"the folder {where.root} of collection {collection!r} is missing. Nothing was changed. Mount or restore "
            f"it and try again, or run `qmd collection remove {collection}` to drop its {where.documents} documents."
        )
    known = store.known_files(collection)
    skips = store.documents.known_skips(collection)
    cutting = f"{config.ingest.chunk_tokens}/{config.ingest.chunk_overlap}"
    before = store.setting(f"chunks:{collection}")
    run.recut = before not in (None, cutting) and bool(known)
    fresh: list[Found] = []
    seen: set[str] = set()
    blocked: list[str] = []
    for found in run.steps.walk(where, config):
        if hasattr(found, "reason"):
            _leave_out(run, cast("Skip", found), blocked)
            continue
        seen.add(found.path)
        stamp = known.get(found.path)
        if (
            stamp is not None
            and (stamp.size, stamp.mtime_ns) == (found.size, found.mtime_ns)
            and not run.recut
        ):
            run.counts["unchanged"] += 1
            continue
        skip = skips.get(found.path)
        if skip is not None and skip[:2] == (found.size, found.mtime_ns):
            run.skipped.append(LeftOut(found.path, skip[2]))
            continue
        fresh.append(found)
        if len(seen) % 1000 == 0:
            run.progress("walk", len(seen), None)
    if known and not seen and not force:
        raise UsageError(
            f"the folder {where.root} of collection {collection!r} has no files left, the index holds {len(known)} "
            "documents of it. Nothing was changed. Mount or restore it, or run `qmd update --force` if it is meant "
            "to be empty."
        )
    gone = {path: stamp for path, stamp in known.items() if path not in seen and not _below(path, blocked)}
    run.total = len(fresh)
    if before != cutting:  # "": cut in part; where this run ends early, the next one cuts again
        store.set_setting(f"chunks:{collection}", "" if run.recut else cutting)
    if fresh or gone:
        _owe_captions(run)
    fresh = _move(run, fresh, gone, known)
    _remove(run, gone, [path for path in skips if path not in seen])
    _index(run, fresh, known)
    _write_captions(run)
    if run.recut:
        store.set_setting(f"chunks:{collection}", cutting)
    if run.done or gone:
        store.db.checkpoint()
    counts = run.counts
    notes = (
        (f"chunk sizes changed ({before or 'in part'} to {cutting}): every file was cut again",)
        if run.recut
        else ()
    )
    return UpdateReport(
        counts["added"],
        counts["changed"],
        counts["moved"],
        counts["removed"],
        counts["unchanged"],
        tuple(run.skipped),
        tuple(run.errors),
        notes,
    )


def update_files(store: Store, collection: str, paths: Iterable[str], config: Config) -> UpdateReport:
    """Bring single files of a collection up to date: read again where they changed, removed where they are gone.

    paths: as the index knows them; one that it does not know is passed over. Raises UsageError without the collection.
    """
    from qmd.ingest.walk import FoundFile, real_name

    where = store.collection(collection)
    run = _Run(store, collection, config, default_steps(), lambda *_: None)
    known = store.known_files(collection)
    root = os.path.realpath(where.root)
    fresh: list[Found] = []
    gone: dict[str, FileStamp] = {}
    for path in paths:
        if path not in known:
            continue
        absolute = os.path.normpath(real_name(root, path))
        if os.path.realpath(absolute) != absolute:
            run.skipped.append(LeftOut(path, "symbolic link: `qmd update` follows it where it may"))
            continue
        try:
            stat = os.stat(absolute)
        except (FileNotFoundError, NotADirectoryError):
            gone[path] = known[path]
            continue
        fresh.append(FoundFile(path, Path(absolute), stat.st_size, stat.st_mtime_ns))
    run.total = len(fresh)
    if fresh or gone:
        _owe_captions(run)
    _remove(run, gone, ())
    _index(run, fresh, known)
    _write_captions(run)
    counts = run.counts
    return UpdateReport(
        changed=counts["changed"],
        removed=counts["removed"],
        unchanged=counts["unchanged"],
        skipped=tuple(run.skipped),
        errors=tuple(run.errors),
    )


def _owe_captions(run: _Run) -> None:
    """Before the first batch is kept: where a run ends before its captions are written, the next one writes them."""
    run.store.set_setting(f"captions:{run.collection}", "due")


def _write_captions(run: _Run) -> None:
    if not run.store.setting(f"captions:{run.collection}"):
        return
    if run.store.pictures.any():
        from qmd.ingest.captions import write_captions

        write_captions(run.store, run.collection)
    run.store.set_setting(f"captions:{run.collection}", "")


def _leave_out(run: _Run, skip: Skip, blocked: list[str]) -> None:
    if is_failure(skip.reason):
        blocked.append(skip.path.rstrip("/"))
        run.errors.append(LeftOut(skip.path, skip.reason))
    else:
        run.skipped.append(LeftOut(skip.path, skip.reason))


def is_failure(reason: str) -> bool:
    """Whether something was left out because it could not be read, so that it may still be there."""
    return reason.startswith("cannot")


def _below(path: str, folders: Sequence[str]) -> bool:
    return any(folder in ("", ".") or path == folder or path.startswith(f"{folder}/") for folder in folders)


def _move(
    run: _Run, fresh: list[Found], gone: dict[str, FileStamp], known: dict[str, FileStamp]
) -> list[Found]:
    """Renamed files keep their rows; gives the files that are left to index and takes the renamed out of `gone`."""
    by_hash: dict[bytes, list[str]] = defaultdict(list)
    for path, stamp in gone.items():
        by_hash[stamp.hash].append(path)
    sizes = {stamp.size for stamp in gone.values()}
    left: list[Found] = []
    moves: list[tuple[Found, str, str]] = []
    for found in fresh:
        if run.recut or found.path in known or found.size not in sizes:
            left.append(found)
            continue
        data = run.steps.read(found, run.config)
        old = by_hash.get(sha256(data).digest()) if isinstance(data, bytes) else None
        title = _title_after_move(run, old[-1], found.path, data) if old and isinstance(data, bytes) else None
        if not old or title is None:
            left.append(found)
            continue
        moves.append((found, old.pop(), title))
    for start in range(0, len(moves), BATCH_FILES):
        batch = moves[start : start + BATCH_FILES]
        with run.store.writing() as writer:
            for found, old_path, title in batch:
                writer.move_document(
                    gone.pop(old_path).document_id,
                    found.path,
                    size=found.size,
                    mtime_ns=found.mtime_ns,
                    title=title,
                )
        run.counts["moved"] += len(batch)
        run.done += len(batch)
        run.progress("index", run.done, run.total)
    return left


def _title_after_move(run: _Run, old: str, new: str, data: bytes) -> str | None:
    """None where the file reads otherwise under its new name: another format, another date in the name."""
    before, after = _parse(run, old, data), _parse(run, new, data)
    if not isinstance(before, Document) or not isinstance(after, Document):
        return None
    return after.title if replace(before, title=after.title) == after else None


def _remove(run: _Run, gone: dict[str, FileStamp], skips: Sequence[str]) -> None:
    """All at once: what is deleted on disk is not found any more from here on."""
    if not gone and not skips:
        return
    with run.store.writing() as writer:
        writer.delete_documents(stamp.document_id for stamp in gone.values())
        writer.forget_skipped(run.collection, skips)
    run.counts["removed"] += len(gone)


def _index(run: _Run, fresh: list[Found], known: dict[str, FileStamp]) -> None:
    batch: list[tuple[Found, bytes, Document | Skip]] = []
    size = 0
    for found in fresh:
        data = run.steps.read(found, run.config)
        if not isinstance(data, bytes):
            if is_failure(data.reason):
                run.errors.append(LeftOut(found.path, data.reason))
                run.done += 1
                continue
            batch.append((found, b"", data))
        else:
            digest = sha256(data).digest()
            stamp = known.get(found.path)
            same = stamp is not None and stamp.hash == digest and not run.recut
            # a document already stored under this hash is only touched; a Skip stands for "nothing to parse"
            parsed = LeftOut(found.path, "") if same else _parse(run, found.path, data)
            if not isinstance(parsed, Document) and is_failure(parsed.reason):
                run.errors.append(LeftOut(found.path, parsed.reason))
                run.done += 1
                continue
            batch.append((found, digest, parsed))
            size += len(data)
        if len(batch) >= BATCH_FILES or size >= BATCH_BYTES:
            _store(run, batch, known)
            batch, size = [], 0
    if batch:
        _store(run, batch, known)


def _parse(run: _Run, path: str, data: bytes) -> Document | Skip:
    try:
        return run.steps.parse(path, data, run.config)
    except Exception as error:  # noqa: BLE001  one file must not keep a collection from being brought up to date
        return LeftOut(path, f"cannot be parsed: {type(error).__name__}: {error}")


def _store(run: _Run, batch: list[tuple[Found, bytes, Document | Skip]], known: dict[str, FileStamp]) -> None:
    with run.store.writing() as writer:
        for found, digest, parsed in batch:
            stamp = known.get(found.path)
            if isinstance(parsed, Document):
                writer.put_document(
                    run.collection,
                    found.path,
                    size=found.size,
                    mtime_ns=found.mtime_ns,
                    hash=digest,
                    document=parsed,
                )
                run.counts["added" if stamp is None else "changed"] += 1
            elif stamp is not None and stamp.hash == digest:
                writer.touch(stamp.document_id, found.size, found.mtime_ns)
                run.counts["unchanged"] += 1
            else:
                run.counts["removed"] += stamp is not None
                run.skipped.append(LeftOut(found.path, parsed.reason))
                writer.note_skipped(
                    run.collection,
                    found.path,
                    size=found.size,
                    mtime_ns=found.mtime_ns,
                    reason=parsed.reason,
                )
    run.done += len(batch)
    run.progress("index", run.done, run.total)


def without_pictures(config: Config) -> str | None:
    """Why pictures are left out; empty: they are read. None: like any other binary file, and nobody wants to know."""
    if not config.ingest.images:
        return None
    return (
        ""
        if find_spec("PIL") is not None
        else "picture: `pip install 'qmd-python[images]'` to find pictures too"
    )


def default_steps() -> Steps:
    """The real stages."""
    from qmd.ingest.parse import parse
    from qmd.ingest.read import CannotRead, read_file
    from qmd.ingest.walk import walk

    def read(found: Found, config: Config) -> bytes | Skip:
        try:
            return read_file(found.absolute, config.ingest.max_file_bytes)
        except CannotRead as error:
            return LeftOut(found.path, str(error))

    return Steps(
        walk=lambda where, config: walk(
            Path(where.root),
            patterns=where.patterns,
            ignore=where.ignore,
            max_file_bytes=config.ingest.max_file_bytes,
            follow_symlinks=config.ingest.follow_symlinks,
            pictures=without_pictures(config),
        ),
        read=read,
        parse=lambda path, data, config: parse(
            path, data, chunk_tokens=config.ingest.chunk_tokens, chunk_overlap=config.ingest.chunk_overlap
        ),
    )
