"""One GGUF file of a hub repository that holds many: which one is meant, downloaded, verified.

Names are written as other programs write them: `owner/name-GGUF` takes the file that suits most machines (Q4_K_M, or
the nearest to it), `owner/name-GGUF:Q8_0` the one of that quantisation, `owner/name:file.gguf` that very file. A
revision stands before the colon.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from qmd.errors import ModelError
from qmd.llm.files import local_path
from qmd.llm.hub import fetch_verified, list_files, read_lock, split_revision

_NAME = re.compile(r"^\w[\w.-]*/[\w.-]+(@[\w./-]+)?(:[\w./-]+)?$")
_QUANTISATION = re.compile(r"(?:^|[-._])((?:I?Q|TQ)\d\w*|MXFP4\w*|BF16|F16|FP16|F32|FP32)$", re.I)
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
PREFERRED = (
    "Q4_K_M",
    "Q4_K_S",
    "Q4_0",
    "Q4_1",
    "Q5_K_M",
    "Q5_K_S",
    "Q5_0",
    "Q6_K",
    "Q8_0",
    "F16",
    "BF16",
    "F32",
)
"""Which quantisation is taken where none is named, best first."""


def is_gguf_on_hub(name: str) -> bool:
    """Whether a name means a GGUF file of a repository: its last word says so, or a file or quantisation is named."""
    if not _NAME.match(name) or local_path(name).exists():
        return False
    repo, _, wanted = name.partition(":")
    return bool(wanted) or re.search(r"[/_-]gguf$", split_revision(repo)[0], re.I) is not None


def repository_of(name: str) -> str:
    """`owner/name@revision:wanted` -> `owner/name@revision`."""
    return name.partition(":")[0]


def quantisation_of(file: str) -> str:
    """`model-Q4_K_M.gguf` -> `Q4_K_M`; empty where the name does not say."""
    found = _QUANTISATION.search(_PART.sub("", file.removesuffix(".gguf")))
    return found[1].upper() if found else ""


def choose_files(names: Sequence[str], wanted: str = "") -> tuple[str, ...]:
    """The file that is meant, with its other parts where it is split; none where there is no such file.

    wanted: a file's name or a quantisation, in either case; empty: by PREFERRED, else the first by name. Projectors of
    multimodal models and importance matrices are no models.
    """
    files = [
        n for n in sorted(names) if n.lower().endswith(".gguf") and not re.search(r"mmproj|imatrix", n, re.I)
    ]
    if wanted.lower().endswith(".gguf"):
        fitting = [n for n in files if wanted.lower() in (n.lower(), Path(n).name.lower())]
    elif wanted:
        fitting = [n for n in files if quantisation_of(n) == wanted.upper()]
    else:
        order = {kind: rank for rank, kind in enumerate(PREFERRED)}
        fitting = sorted(files, key=lambda n: order.get(quantisation_of(n), len(order)))
    if not fitting:
        return ()
    first = fitting[0]
    part = _PART.search(first.removesuffix(".gguf"))
    if part is None:
        return (first,)
    stem = first.removesuffix(".gguf")[: part.start()]
    return tuple(n for n in files if n.startswith(f"{stem}-") and n.endswith(f"-of-{part[2]}.gguf"))


def find_gguf_on_hub(name: str, *, download: bool = True, revision: str | None = None) -> Path:
    """The file on this disk (the first part of a split one), as it was pinned when it was downloaded first.

    Raises ModelError: no such file (naming those there are), no network, a changed or truncated file.
    """
    repo, _, wanted = name.partition(":")
    known = {} if revision else read_lock().get(repo, {})
    files = choose_files(sorted(known.get("files", {})), wanted)
    if not files and download:
        plain, named = split_revision(repo)
        listed = list_files(plain, revision or known.get("commit") or named)
        if listed is None and wanted.lower().endswith(".gguf"):
            files = (wanted,)  # a mirror that gives no list may have it
        elif listed is None:
            raise ModelError(
                f"the files of {plain} cannot be listed (no network, or a mirror without lists). Check the network, or "
                f"name one: `{repo}:FILE.gguf`."
            )
        else:
            revision, names = listed
            files = choose_files(names, wanted)
            if not files:
                raise _no_such_file(repo, wanted, names)
    if not files:
        raise ModelError(
            f"{name} is not on this machine. Run `qmd models pull {name}` where there is a network."
        )
    found = fetch_verified(repo, files, download=download, revision=revision)
    return found.paths[files[0]]


def _no_such_file(repo: str, wanted: str, names: Sequence[str]) -> ModelError:
    kinds = dict.fromkeys(filter(None, (quantisation_of(n) for n in names if n.lower().endswith(".gguf"))))
    if not kinds:
        return ModelError(
            f"repository {repo} holds no GGUF model. Name a model with ONNX files without a colon."
        )
    one = next(iter(kinds))
    return ModelError(
        f"repository {repo} has no {wanted}; it has {', '.join(kinds)}. Choose one: `{repo}:{one}`."
    )
