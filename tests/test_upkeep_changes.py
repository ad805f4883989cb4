"""What happens to an index when its settings change: chunk sizes, patterns; and what `check` says of languages."""

import numpy as np
import pytest

import qmd
from qmd.config import Config, Ingest
from qmd.types import ModelCard

LONG = "# Long\n\n" + "".join(
    f"## Part {n}\n\n" + " ".join(f"word{n}x{i}" for i in range(60)) + ".\n\n" for n in range(8)
)


class English:
    def __init__(self):
        self.card = ModelCard(name="english", role="embedding", dim=2, languages=("en",))
        self.dim, self.max_tokens, self.fingerprint = 2, 256, "english"

    def embed_documents(self, texts):
        return np.tile(np.array([[1.0, 0.0]], np.float32), (len(texts), 1))

    def embed_query(self, text):
        return np.array([1.0, 0.0], np.float32)

    def count_tokens(self, texts):
        return [len(text) for text in texts]


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "long.md").write_text(LONG)
    (folder / "short.md").write_text("# Short\n\nOne line.\n")
    return folder


def test_other_chunk_sizes_cut_unchanged_files_again(notes, tmp_path):
    with qmd.open(tmp_path / "i.sqlite") as index:
        index.add(notes, embed=False)
        before = index.status().chunks
        report = index.update()["notes"]
        assert (report.unchanged, report.notes) == (2, ())
    smaller = Config(ingest=Ingest(chunk_tokens=100))
    with qmd.open(tmp_path / "i.sqlite", config=smaller) as index:
        report = index.update()["notes"]
        assert report.changed == 2
        assert "240/0.0 to 100/0.0" in report.notes[0]
        assert index.status().chunks > before
        assert index.search("word7x3")[0].path == "long.md"
        assert index.update()["notes"].notes == ()
        assert index.update()["notes"].unchanged == 2


def test_adding_a_known_folder_with_other_patterns_follows_them(notes, tmp_path):
    (notes / "code.py").write_text("print('a stray script')\n")
    with qmd.open(tmp_path / "i.sqlite") as index:
        index.add(notes, patterns=["*.md"], embed=False)
        assert {entry.path for entry in index.ls()} == {"long.md", "short.md"}
        index.add(notes, patterns=["*.py", "short.md"], embed=False)
        assert {entry.path for entry in index.ls()} == {"code.py", "short.md"}
        index.add(notes, ignore=["short.md"], embed=False)
        assert {entry.path for entry in index.ls()} == {"code.py"}
        assert index.list_collections()[0].patterns == ("*.py", "short.md")
        index.add(notes, embed=False)
        assert {entry.path for entry in index.ls()} == {"code.py"}


def test_check_names_the_collection_the_model_cannot_read_and_one_that_can(notes, tmp_path):
    chinese = tmp_path / "中文"
    chinese.mkdir()
    for n in range(3):
        (chinese / f"{n}.md").write_text(
            f"# 笔记{n}\n\n如何设置文件权限，以及怎样分配内存，这里都有说明。\n", encoding="utf-8"
        )
    with qmd.open(tmp_path / "i.sqlite", embedder=English()) as index:
        index.add(notes)
        index.add(chinese, name="zh")
        found = {r.name: r for r in index.check()}
        assert "languages of notes" not in found
        warning = found["languages of zh"]
        assert warning.state == "warning"
        assert "3 of 3" in warning.message
        assert "jina-embeddings-v2-base-zh" in warning.remedy
