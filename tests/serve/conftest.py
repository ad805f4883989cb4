"""A stand-in for the Python door with fixed answers, so that the command line is tested on its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qmd.errors import ModelError, NotFound
from qmd.reports import (
    AddReport,
    CheckResult,
    CollectionStatus,
    Context,
    DocumentText,
    EmbedReport,
    Entry,
    ModelVectors,
    NotShown,
    Status,
)
from qmd.types import Collection, Hit, Hits

HOSTILE = "before \x1b[31mred\x1b[0m \x1b]8;;http://evil\x07link\x1b]8;;\x07 \u202egnp.exe\u202c \x07bell"

HITS = (
    Hit(
        docid="abc123",
        score=0.8123456,
        file="qmd://notes/travel/lisbon.md",
        line=12,
        end_line=14,
        title="Lisbon, in spring",
        collection="notes",
        path="travel/lisbon.md",
        heading_path=("Lisbon, in spring", "Getting there"),
        context="Trips, 2015 to today",
        snippet='Take the "elétrico" 28 & walk.\n\n- cost < 10 €',
    ),
    Hit(
        docid="#def456",
        score=0.5,
        file="qmd://notes/odd `name`, with comma.md",
        line=1,
        end_line=1,
        title="=cmd|' /C calc'!A0",
        collection="notes",
        path="odd `name`, with comma.md",
        snippet=HOSTILE,
    ),
    Hit(
        docid="0a0b0c",
        score=0.25,
        file="qmd://日本/caf\udce9.md",
        line=3,
        end_line=3,
        title="権限の変更",
        collection="日本",
        path="caf\udce9.md",
        snippet="ファイルの権限を変更する方法 ]]> \ud800",
    ),
)


@dataclasses.dataclass(frozen=True)
class Skip:
    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Updated:
    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    skipped: tuple[Skip, ...] = ()
    errors: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cleaned:
    size_before: int = 2_123_456
    size_after: int = 123_456
    orphan_vectors: int = 3000
    keyword_rebuilt: bool = True
    notes: tuple[str, ...] = ()


class FakeIndex:
    """Records what it was asked in `calls`; answers what `HITS` and the attributes say."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.hits = Hits(HITS)
        self.raises: dict[str, BaseException] = {}
        self.opened: dict[str, Any] = {}
        self.embedding = EmbedReport("all-MiniLM-L6-v2", embedded=40, remaining=0, seconds=2.0)
        self.checks = [
            CheckResult("configuration", "ok", "defaults"),
            CheckResult("vectors", "warning", "7 texts have none", "Run `qmd embed`."),
        ]

    def _note(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        self.calls.append((name, args, kwargs))
        if name in self.raises:
            raise self.raises[name]

    def asked(self, name: str) -> dict[str, Any]:
        """The keyword arguments of the last call of this name."""
        return next(kwargs for called, _, kwargs in reversed(self.calls) if called == name)

    def __enter__(self) -> FakeIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append(("close", (), {}))

    def search(self, query: str, **options: Any) -> Hits:
        self._note("search", query, **options)
        if options.get("full"):
            return dataclasses.replace(
                self.hits,
                hits=tuple(
                    dataclasses.replace(h, body=f"whole\n{h.snippet}", snippet=None) for h in self.hits
                ),
            )
        return self.hits

    def vsearch(self, query: str, **options: Any) -> Hits:
        self._note("vsearch", query, **options)
        return self.hits

    def query(self, query: str, **options: Any) -> Hits:
        self._note("query", query, **options)
        return self.hits

    def query_image(self, image: str, text: str, **options: Any) -> Hits:
        self._note("query_image", image, text, **options)
        return self.hits

    def similar(self, file: str, **options: Any) -> Hits:
        self._note("similar", file, **options)
        return self.hits

    def get(self, ref: str, *, from_line: int | None = None, max_lines: int | None = None) -> DocumentText:
        self._note("get", ref, from_line=from_line, max_lines=max_lines)
        if ref == "nowhere":
            raise NotFound("no document 'nowhere'. Near: notes/now.md.")
        lines = [f"line {n}" for n in range(1, 41)]
        first = from_line or 1
        chosen = lines[first - 1 : first - 1 + (max_lines or len(lines))]
        return DocumentText(
            docid="abc123",
            file="qmd://notes/travel/lisbon.md",
            collection="notes",
            path="travel/lisbon.md",
            title="Lisbon, in spring",
            text="\n".join(chosen) + "\n",
            line=first,
            end_line=first + len(chosen) - 1,
            lines=40,
            context="Trips, 2015 to today",
        )

    def multi_get(self, pattern: str, **options: Any) -> list[DocumentText | NotShown]:
        self._note("multi_get", pattern, **options)
        if pattern == "none/*":
            return []
        return [
            self.get("x", from_line=2, max_lines=2),
            NotShown("qmd://notes/big.md", "70,000 bytes, limit 65,536"),
        ]

    def ls(self, path: str | None = None) -> list[Entry]:
        self._note("ls", path)
        if path == "empty":
            return []
        return [
            Entry(
                "abc123", "qmd://notes/travel/lisbon.md", "notes", "travel/lisbon.md", "Lisbon", 1234, 1.7e9
            ),
            Entry("def456", "qmd://notes/a, b.md", "notes", "a, b.md", "A", 12, 1.6e9),
        ]

    def list_collections(self) -> list[CollectionStatus]:
        self._note("list_collections")
        return [
            CollectionStatus("notes", str(self.root), 2, True, False, ("**/*.md",), ()),
            CollectionStatus("archive", "/gone", 1000, False, True),
        ]

    def list_contexts(self) -> list[Context]:
        self._note("list_contexts")
        return [Context("/", "", "Everything"), Context("notes", "travel", "Trips, 2015 to today")]

    def add_context(self, path: str, text: str) -> Context:
        self._note("add_context", path, text)
        return Context("notes", "travel", text)

    def remove_context(self, path: str) -> None:
        self._note("remove_context", path)

    def add_collection(self, folder: Path, **options: Any) -> Collection:
        self._note("add_collection", folder, **options)
        return Collection(options["name"] or folder.resolve().name, str(folder))

    def remove_collection(self, name: str) -> None:
        self._note("remove_collection", name)

    def rename_collection(self, old: str, new: str) -> None:
        self._note("rename_collection", old, new)

    def include_collection(self, name: str) -> None:
        self._note("include_collection", name)

    def exclude_collection(self, name: str) -> None:
        self._note("exclude_collection", name)

    def import_original(self, index_yml: Path | None = None) -> list[str]:
        self._note("import_original", index_yml)
        return ["notes", "work"]

    def _report(self) -> Updated:
        skips = tuple(Skip(f"bin{i}.dat", "binary") for i in range(7))
        return Updated(added=3, unchanged=9, skipped=(*skips, Skip("key.pem", "secret")))

    def add(self, folder: Path, **options: Any) -> AddReport:
        self._note("add", folder, **options)
        if options["progress"]:
            options["progress"]("reading", 1, 2)
        return AddReport("notes", str(folder), self._report())  # type: ignore[arg-type]

    def update(self, collections: tuple[str, ...] = (), **options: Any) -> dict[str, Updated]:
        self._note("update", collections, **options)
        return {name: self._report() for name in collections or ("notes",)}

    def embed(self, **options: Any) -> EmbedReport:
        self._note("embed", **options)
        return self.embedding

    def status(self) -> Status:
        self._note("status")
        return Status(
            database="/data/index.sqlite",
            size_bytes=2_500_000,
            config_dir="/config",
            data_dir="/data",
            collections=tuple(self.list_collections()),
            documents=1002,
            chunks=4000,
            model="all-MiniLM-L6-v2",
            pending=7,
            vectors=(ModelVectors("old-model", "f00", 128, 10, 4000, False),),
            contexts=tuple(self.list_contexts()),
        )

    def check(self, *, models: bool = False) -> list[CheckResult]:
        self._note("check")
        return self.checks

    def cleanup(self, **options: Any) -> Cleaned:
        self._note("cleanup", **options)
        return Cleaned()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeIndex:
    """The stand-in, put where `qmd.index.open` is."""
    root = tmp_path / "notes"
    (root / "travel").mkdir(parents=True)
    (root / "travel" / "lisbon.md").write_text("# Lisbon\n")
    index = FakeIndex(root)

    def opened(**options: Any) -> FakeIndex:
        index.opened = options
        if "open" in index.raises:
            raise index.raises["open"]
        return index

    import qmd.index

    monkeypatch.setattr(qmd.index, "open", opened)
    for name in ("QMD_CONFIG_DIR", "QMD_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "places"))
    return index


Run = Callable[..., Result]


@pytest.fixture
def qmd(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process, through the door of the real one: exit codes, messages and all."""

    def run(*arguments: str) -> Any:
        from qmd.serve.cli.app import run as door

        capfd.readouterr()
        code = door(arguments)
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture
def no_model() -> ModelError:
    return ModelError("the model file is not there. Run `pip install ...`.")
