"""Download models from a hub that speaks the Hugging Face protocol, and keep them verified.

Only the files a variant needs are fetched, at one commit. The first download writes that commit and the files' sha256
into `models.lock.json` in the cache: every later opening uses this commit and compares, whatever the repository's main
branch has become. `HF_ENDPOINT` names a mirror, `HF_HUB_OFFLINE=1` forbids the network. Interrupted downloads go on
where they stopped.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qmd.errors import ModelError
from qmd.llm.files import (
    ModelFiles,
    cache_root,
    describe_folder,
    file_sha256,
    joint_sha256,
    write_atomically,
)
from qmd.llm.variants import find_variants, with_weights
from qmd.types import ModelCard, ModelVariant

SIDE_FILES = ("tokenizer.json", "config.json")
LOCK_FORMAT = 1


def lock_path() -> Path:
    return cache_root() / "models.lock.json"


def read_lock() -> dict[str, Any]:
    """repository -> {"commit": ..., "files": {name: sha256}}. A damaged lock file is refused, not
    forgotten."""
    try:
        tree = json.loads(lock_path().read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{lock_path()} is damaged ({error}). Remove it and pull the models again."
        ) from error
    models = tree.get("models") if isinstance(tree, dict) else None
    if not isinstance(models, dict) or tree.get("format_version") != LOCK_FORMAT:
        raise ModelError(f"{lock_path()} has another format. Remove it and pull the models again.")
    return models


def _write_lock(models: dict[str, Any]) -> None:
    tree = {"format_version": LOCK_FORMAT, "models": models}
    write_atomically(lock_path(), json.dumps(tree, indent=1, sort_keys=True).encode())


def split_revision(repo: str) -> tuple[str, str | None]:
    """`owner/name@revision` -> (`owner/name`, revision)."""
    name, _, revision = repo.partition("@")
    return name, revision or None


def resolve_card(card: ModelCard, *, download: bool = True, revision: str | None = None) -> ModelCard:
    """The card with the variants that its repository really holds, and the commit that is then used.

    A repository that is on this machine keeps to its lock entry, unless `revision` asks for another commit. Else its
    file list is asked for, and variants are found in it by their names; a hub that gives no list (a plain mirror)
    leaves the card as it is. Raises ModelError for an unknown repository, and for one that holds no ONNX graph.
    """
    key = card.repo or card.name
    known = None if revision else read_lock().get(key)
    repo, named = split_revision(key)
    if known is not None or not download:
        names = sorted((known or {}).get("files", {}))
        commit = (known or {}).get("commit") or revision
    else:
        wanted = revision or named or card.revision
        listed = list_files(repo, wanted)
        if listed is None:
            return replace(card, revision=wanted)
        commit, names = listed
    found = {v.precision: v for v in find_variants(names, repo)}
    if not found and known is None:
        if not names:
            return card
        if any(name.endswith(".gguf") for name in names):
            raise ModelError(
                f"repository {repo} holds GGUF files and no ONNX graph. As a model that writes text (generation, "
                f"expansion, reranker) it is named with what follows the colon: `{key}:Q4_K_M`."
            )
        raise ModelError(
            f"repository {repo} holds no ONNX graph that is known here (it has {', '.join(names[:6])}, ...). Name one "
            "that was exported to ONNX, or export the model into a local folder."
        )
    exact = {
        v.precision: replace(v, files=with_weights(v.files[0], names))
        for v in card.variants
        if set(v.files) <= set(names)
    }
    # of a repository that is here, the card's other variants can still be fetched
    wished = {v.precision: v for v in card.variants} if known is not None else {}
    kept = wished | found | exact
    order = [v.precision for v in card.variants]
    ranked = sorted(kept.values(), key=lambda v: order.index(v.precision) if v.precision in order else 9)
    return replace(card, variants=tuple(ranked), revision=commit or card.revision)


def list_files(repo: str, revision: str | None) -> tuple[str, list[str]] | None:
    """(commit, names of all files) of a repository; None when the hub gives no list."""
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi(endpoint=constants.ENDPOINT).model_info(repo, revision=revision, timeout=20)
    except GatedRepoError as error:
        raise ModelError(f"{repo} asks for consent. Accept its terms, then set HF_TOKEN.") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise _unknown(repo, revision) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, ConnectionError, TimeoutError, ValueError):
        return None  # the download itself then says what is wrong
    if info.sha is None:
        return None
    return info.sha, [s.rfilename for s in info.siblings or ()]


def find_on_hub(
    card: ModelCard, variant: ModelVariant, *, download: bool = True, revision: str | None = None
) -> ModelFiles:
    """Locate a variant in the cache, downloading what is missing, and verify every file.

    The commit is that of the lock entry; for the first download `card.revision`, or the newest. `revision` pins
    another one instead, whose digests take the place of the old. Raises ModelError with the remedy: no network, no
    such repository, a changed or truncated file, a full disk.
    """
    found = fetch_verified(
        card.repo or card.name,
        (*variant.files, *SIDE_FILES),
        optional=_optional(card),
        pinned={variant.files[0]: variant.sha256} if variant.sha256 else {},
        default=card.revision,
        download=download,
        revision=revision,
    )
    folder = found.paths["tokenizer.json"].parent
    card = replace(card, revision=found.commit)
    return describe_folder(
        card, variant, folder, joint_sha256([found.digests[name] for name in variant.files])
    )


def _optional(card: ModelCard) -> tuple[str, ...]:
    """What a repository may hold that says how a model is read, where the card does not say it."""
    if card.role == "embedding":
        return () if card.dim else ("1_Pooling/config.json", "sentence_bert_config.json")
    if card.role == "generation":
        templates = () if card.template else ("tokenizer_config.json", "chat_template.jinja")
        return ("generation_config.json", *templates)
    return ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """Files of one repository on this disk, by name, at one commit, with what the lock file says of them."""

    commit: str
    paths: dict[str, Path]
    digests: dict[str, str]


def fetch_verified(
    key: str,
    names: Sequence[str],
    *,
    optional: Sequence[str] = (),
    pinned: Mapping[str, str] | None = None,
    default: str | None = None,
    download: bool = True,
    revision: str | None = None,
) -> Fetched:
    """Files of the repository `key` (`owner/name`, perhaps with `@revision`), downloaded where they are missing, each
    compared with its digest in the lock file, or written there where it has none. `pinned`: digests known beforehand;
    `default`: the commit where neither `revision` nor the lock file says one. Raises ModelError.
    """
    repo, named = split_revision(key)
    known = read_lock().get(key, {})
    commit = revision or known.get("commit") or default or named or "main"
    paths: dict[str, Path] = {}
    for name in (*names, *optional):
        found = _fetch(repo, name, commit, download=download, optional=name in optional)
        if found is not None:
            paths[name] = found
            commit = _commit_of(found, name)  # of a branch or tag, what it stands for now
    digests = dict(known.get("files", {})) if commit == known.get("commit") else {}
    for name, path in paths.items():
        digest = file_sha256(path.resolve())
        for expected in ((pinned or {}).get(name, digest), digests.setdefault(name, digest)):
            if digest != expected:
                raise _changed(key, name, digest, expected)
    if digests != known.get("files") or known.get("commit") != commit:
        with _lock_held():
            lock = read_lock()
            lock[key] = {"commit": commit, "files": digests}
            _write_lock(lock)
    return Fetched(commit, paths, digests)


@contextlib.contextmanager
def _lock_held() -> Iterator[None]:
    """One process at a time changes the lock file; where files cannot be locked, the last one wins."""
    path = lock_path().with_suffix(".guard")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as guard:
        try:
            import fcntl
        except ImportError:
            yield
            return
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _changed(repo: str, name: str, found: str, expected: str) -> ModelError:
    return ModelError(
        f"{name} of {repo} is damaged or was changed: sha256 is {found[:16]}..., expected "
        f"{expected[:16]}.... "
        f"Run `qmd models remove {repo}`, then `qmd models pull {repo}`."
    )


def _unknown(repo: str, revision: str | None) -> ModelError:
    return ModelError(
        f"no model {repo} (revision {revision or 'main'}) on the hub. Check the spelling; `qmd models pull NAME "
        "--revision main` takes what is newest."
    )


def _offline(repo: str, name: str) -> ModelError:
    return ModelError(
        f"{name} of {repo} is not on this machine and HF_HUB_OFFLINE is set. Unset it to download."
    )


def _commit_of(path: Path, name: str) -> str:
    """The snapshot folder of the cache is named after the commit."""
    return path.parents[len(Path(name).parts) - 1].name


def _fetch(repo: str, name: str, revision: str, *, download: bool, optional: bool) -> Path | None:
    import httpx
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(repo, name, revision=revision, local_files_only=not download))
    except LocalEntryNotFoundError as error:
        if optional:
            return None
        if constants.HF_HUB_OFFLINE:
            raise _offline(repo, name) from error
        raise ModelError(
            f"{name} of {repo} is not on this machine and cannot be downloaded. Check the network or "
            f"proxy, set "
            f"HF_ENDPOINT to a mirror, or run `qmd models pull {repo}` where there is a network and copy the "
            "cache folder."
        ) from error
    except EntryNotFoundError as error:
        if optional:
            return None
        raise ModelError(
            f"repository {repo} has no file {name}. Choose another precision or model."
        ) from error
    except GatedRepoError as error:
        raise ModelError(f"{repo} asks for consent. Accept its terms, then set HF_TOKEN.") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise _unknown(repo, revision) from error
    except OfflineModeIsEnabled as error:
        raise _offline(repo, name) from error
    except (HfHubHTTPError, httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise ModelError(
            f"downloading {name} of {repo} failed ({type(error).__name__}: {str(error)[:120]}). "
            "What was received is kept: run the command again. Behind a proxy set HTTPS_PROXY; "
            "for a mirror set HF_ENDPOINT."
        ) from error
    except OSError as error:
        raise ModelError(
            f"cannot store {name} of {repo}: {error}. Free disk space and run the command again."
        ) from error


def cached_models() -> dict[str, int]:
    """Repositories in the lock file, with bytes on disk."""
    sizes: dict[str, int] = {}
    for repo in read_lock():
        folder = _repo_folder(repo)
        sizes[repo] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return sizes


def remove_cached(repos: Sequence[str]) -> list[str]:
    """Delete downloaded models, at whatever commits, and their lock entries. Returns what was removed."""
    removed = []
    with _lock_held():
        lock = read_lock()
        for wanted in repos:
            repo = split_revision(wanted)[0]
            entries = [key for key in lock if split_revision(key)[0] == repo]
            folder = _repo_folder(repo)
            if folder.is_dir():
                shutil.rmtree(folder)
            elif not entries:
                continue
            for key in entries:
                del lock[key]
            removed.append(wanted)
        if removed:
            _write_lock(lock)
    return removed


def _repo_folder(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / ("models--" + split_revision(repo)[0].replace("/", "--"))
