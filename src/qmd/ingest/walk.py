"""Find the files of a folder that are worth reading, and say why the others are left out. Opens ignore files only."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore import GitIgnorePatternError

from qmd.errors import NotFound
from qmd.ingest.read import MAX_FILE_BYTES, CannotRead, read_file

IGNORE_FILES = (".gitignore", ".qmdignore")
MAX_IGNORE_BYTES = 1 << 20
SKIPPED_FOLDERS = frozenset(
    [
        "node_modules",
        "__pycache__",
        "bower_components",
        "__pypackages__",
        "site-packages",
        "venv",
        "CVS",
        "lost+found",
        "$RECYCLE.BIN",
    ]
)
PICTURES = frozenset(["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"])
"""Endings of pictures that can be looked at. SVG is text."""
_BINARY = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "bmp",
        "ico",
        "webp",
        "tif",
        "tiff",
        "heic",
        "avif",
        "psd",
        "ai",
        "eps",
        "mp3",
        "wav",
        "ogg",
        "flac",
        "m4a",
        "aac",
        "mid",
        "mp4",
        "mkv",
        "avi",
        "mov",
        "webm",
        "wmv",
        "flv",
        "zip",
        "gz",
        "bz2",
        "xz",
        "zst",
        "lz4",
        "7z",
        "rar",
        "tar",
        "tgz",
        "jar",
        "war",
        "whl",
        "egg",
        "deb",
        "rpm",
        "apk",
        "dmg",
        "iso",
        "img",
        "exe",
        "dll",
        "so",
        "dylib",
        "a",
        "o",
        "obj",
        "lib",
        "class",
        "pyc",
        "pyo",
        "pyd",
        "wasm",
        "bin",
        "dat",
        "db",
        "sqlite",
        "sqlite3",
        "mdb",
        "parquet",
        "feather",
        "arrow",
        "npy",
        "npz",
        "pkl",
        "pickle",
        "h5",
        "hdf5",
        "onnx",
        "pt",
        "pth",
        "gguf",
        "safetensors",
        "ckpt",
        "ttf",
        "otf",
        "woff",
        "woff2",
        "eot",
        "pdf",
        "doc",
        "docx",
        "xls",
        "xlsx",
        "ppt",
        "pptx",
        "odt",
        "ods",
        "odp",
        "epub",
        "mobi",
        "azw3",
        "swf",
        "fla",
        "blend",
        "stl",
        "glb",
        "mo",
        "gmo",
        "pack",
        "idx",
    ]
)
_SECRET = re.compile(
    r"""\.env(?:\.(?!example\Z|sample\Z|template\Z|dist\Z).*)?\Z | .*\.env\Z | id_[^.]+(?:\.(?:pub|key|pem|bak|old))?\Z
    | .*\.(?:pem|key|p12|pfx|p8|jks|keystore|bks|kdb|kdbx|ppk|ovpn|gpg|pgp|asc\.key|agekey|tfstate)\Z
    | \.?(?:netrc|_netrc|pgpass|npmrc|pypirc|htpasswd|git-credentials|dockercfg|my\.cnf|s3cfg|boto)\Z
    | (?:credentials|secrets?|client_secret[^.]*|service[-_]account[^.]*)(?:\.(?:json|ya?ml|toml|ini|txt|enc))?\Z
    | (?:shadow|gshadow|master\.key|.*_(?:rsa|dsa|ecdsa|ed25519))\Z""",
    re.I | re.X,
)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A regular file. `path` is posix, relative to the root, always valid Unicode: a byte of a file name that is
    not UTF-8 shows as `\\xE9`; `absolute` is the real name.
    """

    path: str
    absolute: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or (with a "/" at its end) a folder that is left out, and why."""

    path: str
    reason: str


Spec = tuple[
    int, GitIgnoreSpec, str
]  # how many characters of the path lie above it, the patterns, the file's name
Spot = tuple[str, str, tuple[Spec, ...]]  # a name, its path from the top, the ignore files that hold there


def walk(
    root: Path,
    *,
    patterns: Sequence[str] = (),
    ignore: Sequence[str] = (),
    max_file_bytes: int = MAX_FILE_BYTES,
    follow_symlinks: bool = False,
    pictures: str | None = None,
) -> Iterator[FoundFile | Skipped]:
    """Find files under `root`, in the order of their names.

    patterns: globs of which a path has to match one and none that begins with "!" (no others: all); else a file is not
    reported. ignore: globs in .gitignore syntax, stronger than the ignore files. follow_symlinks: follow links to what
    lies inside the root and is not left out there. pictures: why pictures are left out; empty: they are not.
    Raises NotFound if the root does not exist.
    """
    top = os.path.realpath(root)
    binary = _BINARY - PICTURES if pictures == "" else _BINARY
    why = dict.fromkeys(PICTURES, pictures) if pictures else {}
    if not os.path.isdir(top):
        raise NotFound(
            f"folder {os.fspath(root)!r} does not exist. Name a folder, or mount it and run again."
        )
    if patterns and all(pattern.startswith("!") for pattern in patterns):
        patterns = ["*", *patterns]
    wanted = _compile([p for pattern in patterns for p in expand_braces(pattern)]) if patterns else None
    unwanted = _compile([p for pattern in ignore for p in expand_braces(pattern)]) if ignore else None
    seen: set[tuple[int, int]] = set()
    above = _specs_above(top)
    # a folder, how it is called and (behind a link) where it lies, both from the top, and the ignore files above it
    stack: list[tuple[str, str, str, tuple[Spec, ...]]] = [(top, "", "", above)]
    while stack:
        folder, prefix, lying, specs = stack.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=_name)
        except OSError as error:
            yield Skipped(readable(prefix) or "./", f"cannot be listed: {error.strerror or error}")
            continue
        names = {entry.name for entry in entries}
        specs = _add_specs(specs, folder, lying, names)
        folders: list[tuple[str, str, str, tuple[Spec, ...]]] = []
        for entry in entries:
            name = entry.name
            path = prefix + name
            shown = path if path.isascii() else readable(path)
            real = entry.path
            status: os.stat_result | None
            reason: str | None = None
            spot: Spot = (name, lying + name, specs)
            others: list[Spot] = [] if lying == prefix else [(name, path, ())]
            try:
                if entry.is_symlink():
                    target = os.path.realpath(real) if follow_symlinks else ""
                    if not follow_symlinks:
                        yield Skipped(shown, "symbolic link")
                        continue
                    if not target.startswith(top + os.sep) or not os.path.exists(target):
                        yield Skipped(shown, "symbolic link out of the folder, or to nothing")
                        continue
                    real = target
                    is_folder = os.path.isdir(target)
                    status = os.stat(target)
                    others.append(spot)
                    spot, reason = _spot(top, target, above, unwanted)
                else:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    status = None if is_folder else entry.stat(follow_symlinks=False)
            except OSError as error:
                yield Skipped(shown, f"cannot be read: {error.strerror or error}")
                continue
            if is_folder:
                for one in (spot, *others):
                    reason = reason or _folder_reason(*one, unwanted)
                if reason:
                    yield Skipped(shown + "/", reason)
                    continue
                if follow_symlinks:
                    here = os.stat(real)
                    if (here.st_dev, here.st_ino) in seen:
                        yield Skipped(shown + "/", "already visited: a loop of links")
                        continue
                    seen.add((here.st_dev, here.st_ino))
                folders.append((real, path + "/", spot[1] + "/", spot[2]))
                continue
            if wanted is not None and not wanted.match_file(path):
                continue
            assert status is not None
            for one in (spot, *others):
                reason = reason or _file_reason(*one, unwanted, status, max_file_bytes, binary, why)
            if reason is None and shown is not path and shown != path and shown.rpartition("/")[2] in names:
                reason = "its name is not UTF-8 and would be mistaken for that of its neighbour"
            if reason:
                yield Skipped(shown, reason)
            else:
                yield FoundFile(shown, Path(real), status.st_size, status.st_mtime_ns)
        stack.extend(reversed(folders))


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _spot(
    top: str, target: str, specs: tuple[Spec, ...], unwanted: GitIgnoreSpec | None
) -> tuple[Spot, str | None]:
    """Where a link leads to, and why a folder above that is left out."""
    folder, prefix, reason = top, "", None
    *above, name = os.path.relpath(target, top).split(os.sep)
    for part in above:
        specs = _add_specs(specs, folder, prefix, set(IGNORE_FILES))
        reason = reason or _folder_reason(part, prefix + part, specs, unwanted)
        folder, prefix = os.path.join(folder, part), f"{prefix}{part}/"
    return (name, prefix + name, _add_specs(specs, folder, prefix, set(IGNORE_FILES))), reason


def readable(path: str) -> str:
    """A path as valid Unicode; bytes that are not UTF-8 show as `\\xE9`."""
    return re.sub("[\udc80-\udcff]", lambda m: f"\\x{ord(m[0]) - 0xDC00:02X}", path)


def real_name(root: str, path: str) -> str:
    """The file that is shown as `path`: what `readable` changed is changed back."""
    here = os.path.join(root, path)
    if "\\x" not in path or os.path.lexists(here):
        return here
    return os.path.join(root, re.sub(r"\\x([89A-F][0-9A-F])", lambda m: chr(0xDC00 + int(m[1], 16)), path))


def _folder_reason(
    name: str, path: str, specs: tuple[Spec, ...], unwanted: GitIgnoreSpec | None
) -> str | None:
    if name[0] == ".":
        return "hidden folder"
    if name in SKIPPED_FOLDERS:
        return "folder of dependencies or caches"
    return _ignored(path + "/", specs, unwanted)


def _file_reason(
    name: str,
    path: str,
    specs: tuple[Spec, ...],
    unwanted: GitIgnoreSpec | None,
    status: os.stat_result,
    max_file_bytes: int,
    binary: frozenset[str],
    why: Mapping[str, str],
) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if _SECRET.match(name):
        return "secret: the name says keys or passwords"
    if name[0] == ".":
        return "hidden file"
    reason = _ignored(path, specs, unwanted)
    if reason:
        return reason
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    if ending in binary:
        return why.get(ending, "binary: by its name")
    if status.st_size > max_file_bytes:
        return f"too large: {status.st_size:,} bytes, the limit is {max_file_bytes:,}"
    return None


def _ignored(path: str, specs: tuple[Spec, ...], unwanted: GitIgnoreSpec | None) -> str | None:
    if unwanted is not None and unwanted.match_file(path):
        return "ignored by the collection"
    for skip, spec, source in reversed(specs):
        inside = path[skip:] if skip >= 0 else source.partition(":")[2] + path
        result = spec.check_file(inside).include
        if result is not None:
            return f"ignored by {source.partition(':')[0]}" if result else None
    return None


def _add_specs(specs: tuple[Spec, ...], folder: str, prefix: str, names: set[str]) -> tuple[Spec, ...]:
    for source in IGNORE_FILES:
        if source in names:
            spec = _load(os.path.join(folder, source))
            if spec is not None:
                specs = (*specs, (len(prefix), spec, source))
    return specs


def _specs_above(top: str) -> tuple[Spec, ...]:
    """Ignore files between the folder and the top of the git repository it lies in."""
    folder, inner, found = top, "", []
    while not os.path.lexists(os.path.join(folder, ".git")):
        above, name = os.path.split(folder)
        if above == folder:
            return ()
        folder, inner = above, f"{name}/{inner}"
        for source in reversed(IGNORE_FILES):
            path = os.path.join(folder, source)
            spec = _load(path) if os.path.lexists(path) else None
            if spec is not None:
                found.append((-1, spec, f"{source}:{inner}"))
    return tuple(reversed(found))


def _load(path: str) -> GitIgnoreSpec | None:
    try:
        data = read_file(path, MAX_IGNORE_BYTES)
    except CannotRead:
        return None
    return _compile(data.decode("utf-8-sig", "surrogateescape").splitlines())


def _compile(lines: Sequence[str]) -> GitIgnoreSpec | None:
    """Patterns in .gitignore syntax; lines that are not valid or could match slowly are left out."""
    good = []
    for line in lines:
        if len(line) > 500 or line.count("*") > 12:
            continue
        try:
            GitIgnoreSpec.from_lines([line])
        except (GitIgnorePatternError, ValueError, re.error):
            continue
        good.append(line)
    return GitIgnoreSpec.from_lines(good)


def expand_braces(pattern: str, limit: int = 64) -> list[str]:
    """`*.{md,txt}` -> `*.md`, `*.txt`."""
    done: list[str] = []
    todo = [pattern]
    while todo and len(done) + len(todo) <= limit:
        one = todo.pop(0)
        match = re.search(r"\{([^{}]*,[^{}]*)\}", one)
        if match is None:
            done.append(one)
        else:
            todo += [one[: match.start()] + part + one[match.end() :] for part in match[1].split(",")]
    return done + todo
