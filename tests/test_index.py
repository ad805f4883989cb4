# ruff: noqa: E501
import json
import subprocess
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import qmd
from qmd.config import Config, Memory, Models, Places, Search
from qmd.errors import ConfigError, ModelMismatch, NotFound, UsageError
from qmd.reports import Context, NotShown
from qmd.search.query import _WORD
from qmd.types import Collection, ModelCard, ModelVariant


class WordEmbedder:
    """Deterministic: a text is the sum of its words' pseudo-random directions."""

    def __init__(self, name="words", dim=64, languages=("en",)):
        self.card = ModelCard(name=name, role="embedding", dim=dim, languages=languages)
        self.dim = dim
        self.max_tokens = 256
        self.fingerprint = f"{name}:{dim}"

    def embed_documents(self, texts):
        return np.stack([self.embed_query(text) for text in texts])

    def embed_query(self, text):
        vector = np.full(self.dim, 1e-3, np.float32)
        for word in _WORD.findall(text.lower()):
            vector += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(self.dim)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def count_tokens(self, texts):
        return [len(_WORD.findall(text)) + 2 for text in texts]


NOTES = {
    "work/memory.md": "---\ntags: [c, heap]\ndate: 2024-03-01\n---\n# Memory\n\nAllocate memory on the heap.\n\nThen free it.\n",
    "work/files.md": "# Files\n\nFile permissions are changed with chmod.\n",
    "home/soup.md": "# Soup\n\nBoil water, add miso.\nServe hot.\n",
    "home/cats.md": "# Cats\n\nCats fear water. Memory of a cat is short.\n",
}


def write(folder: Path, notes=NOTES) -> Path:
    for name, text in notes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def index(tmp_path):
    with qmd.open(tmp_path / "data", embedder=WordEmbedder()) as opened:
        opened.add(write(tmp_path / "notes"))
        yield opened


def paths(hits):
    return [hit.path for hit in hits]


def test_keyword_search_loads_neither_numpy_nor_a_runtime(tmp_path):
    code = (
        "import qmd, sys\n"
        "index = qmd.open(sys.argv[1])\n"
        "index.search('x')\n"
        "heavy = {'torch', 'onnxruntime', 'numpy', 'tokenizers', 'rapidfuzz'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    source = str(Path(qmd.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.sqlite")],
        env={"PYTHONPATH": source, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_three_searches(index):
    assert paths(index.search("heap"))[0] == "work/memory.md"
    assert paths(index.vsearch("boil water add miso"))[0] == "home/soup.md"
    hits = index.query("allocate memory")
    assert hits[0].path == "work/memory.md"
    assert hits[0].file == "qmd://notes/work/memory.md"
    assert hits.degraded == ()
    assert {"keyword", "embed", "vector", "fuse", "hits"} <= hits.timings_ms.keys()


def test_a_hit_shows_the_right_line_and_the_match(index):
    hit = index.search("heap")[0]
    lines = NOTES["work/memory.md"].split("\n")
    assert "\n".join(lines[hit.line - 1 : hit.end_line]) == hit.snippet
    assert "heap" in [hit.snippet[a:b] for a, b in hit.marks]
    assert index.search("heap", full=True)[0].body == NOTES["work/memory.md"]


def test_filters_hold_in_every_search(index):
    for search in (index.search, index.vsearch, index.query):
        assert set(paths(search("memory water", path="home"))) <= {"home/soup.md", "home/cats.md"}
        assert paths(search("memory", tags=["heap"])) == ["work/memory.md"]
        assert paths(search("memory", before="2024-06")) == ["work/memory.md"]
        assert "work/memory.md" not in paths(search("memory", after="2024-06"))
        assert "work/memory.md" not in paths(search("memory -heap"))
        assert len(search("memory water", limit=1)) == 1
        assert paths(search('"short"')) == ["home/cats.md"]
    best = index.query("memory").hits[0].score
    assert [hit.score for hit in index.query("memory", min_score=best).hits] == [best]
    assert not index.query("memory", min_score=min(1.0, best + 0.001)).hits
    with pytest.raises(UsageError, match="not a date"):
        index.search("x", after="soon")
    with pytest.raises(UsageError):
        index.search("x", limit=0)
    with pytest.raises(NotFound, match="notes"):
        index.search("x", collections=["nothing"])
    assert paths(index.search("water", limit=2**63)) == paths(index.search("water", all=True))


def test_explain_gives_ranks_scores_and_weights(index):
    explain = index.query("allocate memory", explain=True)[0].explain
    assert explain["lists"]["keyword"]["rank"] == 1
    assert explain["lists"]["vector"]["weight"] == 1.0


def test_without_vectors_it_answers_by_keyword_and_says_so(tmp_path):
    with qmd.open(tmp_path / "x.sqlite", embedder=WordEmbedder()) as index:
        index.add(write(tmp_path / "notes"), embed=False)
        hits = index.query("heap memory")
        assert hits[0].path == "work/memory.md"
        assert "qmd embed" in hits.degraded[0]
        with pytest.raises(NotFound, match="qmd embed"):
            index.vsearch("heap")


def test_without_a_model_it_answers_by_keyword_and_says_so(tmp_path):
    config = Config(models=Models(embedding="no-such-model"))
    with qmd.open(tmp_path / "x.sqlite", config=config) as index:
        report = index.add(write(tmp_path / "notes"))
        assert report.update.added == 4
        assert "no-such-model" in report.degraded[0]
        hits = index.query("heap")
        assert hits[0].path == "work/memory.md"
        assert "no-such-model" in hits.degraded[0]


def test_vectors_of_another_model_are_never_mixed(tmp_path):
    place = tmp_path / "x.sqlite"
    with qmd.open(place, embedder=WordEmbedder()) as index:
        index.add(write(tmp_path / "notes"))
    with qmd.open(place, embedder=WordEmbedder("other", 32)) as index:
        with pytest.raises(ModelMismatch, match="qmd embed --model-changed"):
            index.vsearch("heap")
        with pytest.raises(ModelMismatch, match="qmd embed --model-changed"):
            index.embed()
        assert "qmd embed --model-changed" in index.query("heap").degraded[0]
        assert index.embed(model_changed=True).remaining == 0
        assert index.query("heap").degraded == ()
        assert [model.name for model in index.status().vectors] == ["other"]


def test_a_model_is_not_trusted_with_a_script_it_cannot_read(index):
    hits = index.query("如何分配 内存")
    assert "left out" in hits.degraded[0]
    assert "expect little" in index.vsearch("如何分配内存").degraded[0]


def test_the_order_of_collections_says_nothing(tmp_path):
    found = []
    for order in (("a", "b"), ("b", "a")):
        with qmd.open(tmp_path / f"{order[0]}.sqlite", embedder=WordEmbedder()) as index:
            for name in order:
                write(
                    tmp_path / name,
                    {f"{name}{i}.md": f"# Same\n\nwater and {name}{i % 2}\n" for i in range(6)},
                )
                index.add(tmp_path / name)
            found.append(
                [[hit.file for hit in s("water same")] for s in (index.search, index.vsearch, index.query)]
            )
    assert found[0] == found[1]


def test_excluded_collections_are_searched_only_by_name(index, tmp_path):
    index.add(write(tmp_path / "private", {"p.md": "# Private\n\nsecret water\n"}))
    index.exclude_collection("private")
    for search in (index.search, index.vsearch, index.query):
        assert "p.md" not in paths(search("secret water"))
        assert paths(search("secret water", collections=["private"])) == ["p.md"]
    index.exclude_collection("notes")
    assert paths(index.search("water")) == []
    index.include_collection("private")
    assert paths(index.search("water")) == ["p.md"]


@pytest.mark.parametrize(
    "ref",
    ["home/soup.md", "notes/home/soup.md", "qmd://notes/home/soup.md", "./home/soup.md", "DOCID", "#DOCID"],
)
def test_get_by_every_name(index, ref):
    docid = next(entry.docid for entry in index.ls() if entry.path == "home/soup.md")
    ref = ref.replace("DOCID", docid)
    assert index.get(ref).text + "\n" == NOTES["home/soup.md"]
    part = index.get(f"{ref}:3:1")
    assert (part.text, part.line, part.end_line, part.lines) == ("Boil water, add miso.", 3, 3, 4)
    assert index.get(f"{ref}:4").text == "Serve hot."
    assert index.get(ref, from_line=3, max_lines=2).text == "Boil water, add miso.\nServe hot."


def test_get_on_the_disk_and_what_is_not_there(index, tmp_path):
    assert index.get(str(tmp_path / "notes" / "home" / "soup.md")).path == "home/soup.md"
    with pytest.raises(NotFound, match=r"qmd://notes/home/soup\.md"):
        index.get("soop.md")
    with pytest.raises(NotFound, match="qmd ls"):
        index.get("zzzzzzzz")
    with pytest.raises(NotFound, match="4 lines"):
        index.get("home/soup.md", from_line=5)


def test_multi_get(index):
    assert [d.path for d in index.multi_get("home/*.md")] == ["home/cats.md", "home/soup.md"]
    assert [d.path for d in index.multi_get("notes/home")] == ["home/cats.md", "home/soup.md"]
    docs = index.multi_get("home/soup.md, work/files.md, nothing.md")
    assert [d.path for d in docs[:2]] == ["home/soup.md", "work/files.md"]
    assert isinstance(docs[2], NotShown)
    assert isinstance(index.multi_get("work/*", max_bytes=10)[0], NotShown)
    assert index.multi_get("work/files.md", max_lines=1)[0].text == "# Files"


def test_contexts_and_collections(index):
    index.add_context("/", "all notes")
    index.add_context("qmd://notes/home", "at home")
    assert index.list_contexts() == [Context("/", "", "all notes"), Context("notes", "home", "at home")]
    assert index.search("miso")[0].context == "all notes\n\nat home"
    index.remove_context("notes/home")
    assert index.search("miso")[0].context == "all notes"
    with pytest.raises(NotFound):
        index.add_context("nowhere/x", "text")
    with pytest.raises(NotFound):
        index.remove_context("notes/home")
    index.rename_collection("notes", "mine")
    assert index.search("miso")[0].file == "qmd://mine/home/soup.md"
    index.remove_collection("mine")
    assert index.search("miso").hits == ()


def test_add_again_updates_and_names_do_not_collide(index, tmp_path):
    (tmp_path / "notes" / "home" / "soup.md").unlink()
    report = index.add(tmp_path / "notes")
    assert (report.update.removed, report.collection) == (1, "notes")
    assert index.search("miso").hits == ()
    other = write(tmp_path / "elsewhere" / "notes")
    with pytest.raises(UsageError, match="--name"):
        index.add(other)
    with pytest.raises(NotFound):
        index.add(tmp_path / "missing")


def test_a_folder_is_the_same_however_it_is_written(tmp_path, monkeypatch):
    write(tmp_path / "notes")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    with qmd.open(tmp_path / "x.sqlite", embedder=WordEmbedder()) as index:
        assert index.add("../notes").root == str(tmp_path / "notes")
        monkeypatch.chdir(tmp_path / "notes")
        assert index.add(".").collection == "notes"
        assert index.get(str(tmp_path / "notes" / "home" / "soup.md")).path == "home/soup.md"
        assert index.add_context("../notes/home", "at home") == Context("notes", "home", "at home")
        assert index.add_collection("..").name == tmp_path.name


def test_a_folder_that_was_added_with_dots_is_known_again(tmp_path):
    write(tmp_path / "notes")
    (tmp_path / "project").mkdir()
    dotted = f"{tmp_path}/project/../notes"
    with qmd.open(tmp_path / "x.sqlite", embedder=WordEmbedder()) as index:
        index.store.add_collection(Collection("notes", dotted, (), ()))
        assert index.add(tmp_path / "notes").collection == "notes"
        assert index.get(str(tmp_path / "notes" / "home" / "soup.md")).path == "home/soup.md"


@pytest.mark.parametrize(
    "ask",
    [
        lambda index: index.search("memory", path="a*" * 40_000),
        lambda index: index.vsearch("memory", title="a" * 60_000),
        lambda index: index.similar("~nobody-is-called-so/a.md"),
        lambda index: index.similar("x" * 400),
        lambda index: index.similar("\ud800"),
        lambda index: index.add("~nobody-is-called-so"),
        lambda index: index.add_context("~nobody-is-called-so/a", "text"),
        lambda index: index.get("home/soup.md:" + "1" * 5_000),
        lambda index: index.get("\ud800"),
        lambda index: index.query_image("a" * 400),
    ],
)
def test_what_is_too_long_or_nowhere_is_said(index, ask):
    with pytest.raises((UsageError, NotFound)):
        ask(index)


def test_any_number_and_any_characters_can_be_asked_for(index):
    assert index.query("water", limit=10**20).hits
    assert index.query("path:" + "a*" * 40_000 + " water").hits
    for condition in ({"path": "\ud800"}, {"title": "\ud800"}, {"tags": ["\ud800"]}, {"lang": "\ud800"}):
        assert index.search("water", **condition).hits == ()
    assert index.add_context("notes", "all \ud800").text == "all ?"


def test_status_and_check(index, tmp_path):
    status = index.status()
    assert (status.documents, status.collections[0].name) == (4, "notes")
    assert status.vectors[0].done == status.vectors[0].total == status.chunks
    assert {result.state for result in index.check()} == {"ok"}
    (tmp_path / "notes").rename(tmp_path / "gone")
    assert any(r.state == "warning" and "missing" in r.message for r in index.check())
    assert index.cleanup().size_after > 0


def test_open_chooses_the_file(tmp_path):
    with pytest.raises(NotFound, match="qmd add"):
        qmd.open(tmp_path / "nothing.sqlite", create=False)
    qmd.open(tmp_path, index="work").close()
    assert (tmp_path / "work.sqlite").is_file()


def test_vectors_of_a_server_or_of_a_folder_are_those_of_the_configured_model(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    card = ModelCard("words", "embedding", 64, 256, variants=(ModelVariant("fp32", ("model.onnx",)),))
    (folder / "card.json").write_text(json.dumps(asdict(card)))
    for number, name in enumerate(("http://me:hush@127.0.0.1:1/v1?model=words", str(folder))):
        config = Config(models=Models(embedding=name))
        with qmd.open(tmp_path / f"{number}.sqlite", config=config, embedder=WordEmbedder()) as index:
            index.add(write(tmp_path / "notes"))
            status = index.status()
            assert [v.configured for v in status.vectors] == [True]
            assert status.pending == 0
    other = Config(models=Models(embedding="http://127.0.0.1:1/v1?model=other"))
    with qmd.open(tmp_path / "0.sqlite", config=other) as index:
        assert index.status().pending > 0


def test_two_databases_of_one_stem_share_no_file(tmp_path):
    """A file from before belongs to `a.sqlite`, or where there is none to the only other one."""
    config = Config(memory=Memory(searches=True))
    for name in ("a.db", "a.sqlite", "b.db"):
        (tmp_path / "b.searches").touch()
        with qmd.open(tmp_path / name, config=config, embedder=WordEmbedder()) as opened:
            opened.add(write(tmp_path / "notes"))
            opened.query("boil water")
            opened.get("home/soup.md")
    kept = {path.name for path in tmp_path.glob("?.*searches")}
    assert kept == {"a.searches", "a.db.searches", "b.searches"}
    assert (tmp_path / "b.searches").stat().st_size
    assert {path.name for path in tmp_path.glob("?.*costs.json")} == {
        "a.costs.json", "a.db.costs.json", "b.db.costs.json"
    }  # fmt: skip


def test_defaults_come_from_the_configuration(tmp_path):
    with qmd.open(
        tmp_path / "x.sqlite", config=Config(search=Search(limit=1)), embedder=WordEmbedder()
    ) as index:
        index.add(write(tmp_path / "notes"))
        assert len(index.search("water")) == 1
        assert len(index.search("water", all=True)) == 2


def test_collections_of_the_original_are_taken_over(index, tmp_path):
    write(tmp_path / "old")
    yml = tmp_path / "index.yml"
    yml.write_text(
        f"global_context: everything\ncollections:\n  old:\n    path: {tmp_path}/old\n    pattern: '**/*.md'\n"
        "    includeByDefault: false\n    context:\n      /home: at home\n  notes:\n    path: /elsewhere\n"
    )
    assert index.import_original(yml) == ["old"]
    old = next(row for row in index.list_collections() if row.name == "old")
    assert (old.root, old.patterns, old.include) == (f"{tmp_path}/old", ("**/*.md",), False)
    assert Context("old", "home", "at home") in index.list_contexts()
    assert index.update(["old"])["old"].added == 4
    with pytest.raises(NotFound):
        index.import_original(tmp_path / "none.yml")
    for wrong in ("collections: {a: {path: /x, context: [1, 2]}}", "[" * 3000):
        yml.write_text(wrong)
        with pytest.raises(ConfigError):
            index.import_original(yml)


def test_a_project_s_own_index_reads_nothing_outside_by_any_door(tmp_path):
    """It may have come with the project, from a stranger, and name folders of whoever opens it."""
    home, project = write(tmp_path / "home", {"diary.md": "kiwi old"}), tmp_path / "project"
    with qmd.open(project / ".qmd" / "index.sqlite") as theirs:
        theirs.add(home, embed=False)
    write(home, {"diary.md": "kiwi and a secret"})
    with qmd.open(places=Places(project / ".qmd", project / ".qmd", project / ".qmd")) as opened:
        for read in (opened.update, lambda: opened.add(home, name="other")):
            with pytest.raises(UsageError, match="outside the project"):
                read()
        hits = opened.search("kiwi", reread=True)
        assert "secret" not in hits[0].snippet
        assert any("outside the project" in note for note in hits.degraded)
