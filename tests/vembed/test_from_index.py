"""Pairs from an index, an adapter over its embedder, and the index with the adapter's vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

import qmd
from qmd.config import Config, Models
from qmd.errors import ConfigError, ModelError, NotFound
from qmd.llm import open_embedder
from qmd.llm.adapted import AdaptedEmbedder, read_adapter, write_adapter
from qmd.machine import check_files
from qmd.types import ModelCard
from qmd.vembed.config import TrainConfig, load_train_config
from qmd.vembed.from_index import _without_title, pairs_of_index
from qmd.vembed.run import train

NOTES = {
    "wing.md": "# Lift of a wing\n\nThe slipstream of a propeller raises the lift of the wing behind it by a third. "
    "See [how heat moves](heat.md) for the other half of the work, which was done in the winter after it.\n\n"
    "## Method\n\nA model of wood was hung in the tunnel, and its lift was read from a balance above it.\n",
    "heat.md": "# Conduction in slabs\n\nHeat moves through layers of metal as if each were a resistance of its own. "
    "The walls of the chamber are kept at one temperature.\n\n![a slab of three metals](slab.png)\n\n"
    "## Method\n\nThermocouples were put between the layers, [[wing|wings]] were not needed at all for that.\n",
    "deep/jet.md": "# Noise of a jet\n\nA jet is loudest at an angle of thirty degrees to its axis, "
    "says [Lift](../wing.md). "
    "It grows with the eighth power of the speed.\n\n"
    "## Method\n\nMicrophones were set on a circle around the nozzle of it.\n",
}


class HashedWords:
    """A deterministic embedder: a text is the sum of its words' random vectors."""

    dim, max_tokens, fingerprint = 32, 256, "hashed-words:1"
    card = ModelCard("hashed-words", "embedding", 32, 256, languages=("en",))

    def __init__(self) -> None:
        self.texts = 0

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += len(texts)
        return np.stack([self.embed_query(text) for text in texts])

    def embed_query(self, text: str) -> np.ndarray:
        seeds = [int(hashlib.sha256(w.encode()).hexdigest()[:8], 16) for w in text.lower().split()] or [0]
        total = np.sum([np.random.default_rng(seed).normal(size=32) for seed in seeds], axis=0)
        return (total / np.linalg.norm(total)).astype(np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) + 2 for text in texts]


@pytest.fixture
def index(tmp_path: Path) -> qmd.Index:
    from PIL import Image

    for name, text in NOTES.items():
        (tmp_path / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes" / name).write_text(text)
    Image.new("RGB", (8, 8)).save(tmp_path / "notes" / "slab.png")
    opened = qmd.open(tmp_path / "index.sqlite", config=Config(), embedder=HashedWords())
    opened.add(tmp_path / "notes", patterns=["**/*.md", "*.md"])
    return opened


def by_query(rows: Sequence[dict[str, object]]) -> dict[object, str]:
    return {row["query"]: str(row["positive"]) for row in rows}


def test_what_documents_say_about_themselves(index: qmd.Index, tmp_path: Path) -> None:
    found = {
        kind: list(pairs_of_index(index.store, kinds=[kind]))
        for kind in ("title", "heading", "link", "caption")
    }  # type: ignore[list-item]
    titles = by_query(found["title"])
    assert {*titles} == {"Lift of a wing", "Conduction in slabs", "Noise of a jet"}
    assert all(query not in text for query, text in titles.items())
    assert titles["Noise of a jet"].startswith("A jet is loudest")
    # "Method" heads a section of every document, so it is asked together with the title.
    headings = by_query(found["heading"])
    assert "Method" not in headings
    links = by_query(found["link"])
    assert links["how heat moves"].startswith("Heat moves")
    assert links["wings"].startswith("The slipstream")
    assert links["Lift"].startswith("The slipstream")
    [caption] = found["caption"]
    assert caption == {
        "query": "a slab of three metals",
        "positive": str((tmp_path / "notes" / "slab.png").resolve()),
        "mode": "t2i",
    }


def test_sentences_are_plain_and_stand_in_their_passage(index: qmd.Index) -> None:
    rows = list(pairs_of_index(index.store, kinds=["sentence"]))
    assert (
        "See how heat moves for the other half of the work, which was done in the winter after it."
        in by_query(rows)
    )
    assert len(rows) >= 3
    for row in rows:
        assert "[" not in str(row["query"])
        assert row["mode"] == "t2t"
    assert len({(row["query"], row["positive"]) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Go\n\nGoogle made it.", "Google made it."),
        ("Google made it.", "Google made it."),
        ("Go is a language.", "Go is a language."),
    ],
)
def test_a_title_is_taken_off_as_a_line_and_never_within_a_word(text: str, rest: str) -> None:
    assert _without_title(text, "Go") == rest


def test_links_and_pictures_may_have_spaces_in_their_names(index: qmd.Index, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    (notes / "heat.md").rename(notes / "my heat.md")
    (notes / "slab.png").rename(notes / "my slab.png")
    (notes / "my heat.md").write_text(NOTES["heat.md"].replace("slab.png", "my%20slab.png"))
    (notes / "wing.md").write_text(NOTES["wing.md"].replace("heat.md", "my%20heat.md"))
    index.update()
    assert by_query(list(pairs_of_index(index.store, kinds=["link"])))["how heat moves"].startswith("Heat")
    [caption] = pairs_of_index(index.store, kinds=["caption"])
    assert str(caption["positive"]).endswith("my slab.png")


def test_negatives_are_found_in_other_documents(index: qmd.Index) -> None:
    own = {text.split("\n")[2][:20]: name for name, text in NOTES.items()}
    for row in index.training_pairs(kinds=["title"], negatives=2):
        wrong = row.get("negatives", [])
        assert row["positive"] not in wrong  # type: ignore[operator]
        assert {text[:20] for text in wrong} <= {*own} - {str(row["positive"])[:20]}  # type: ignore[attr-defined]
    asked: list[str] = []

    def find(query: str, limit: int) -> list[str]:
        asked.append(query)
        return [entry.docid for entry in index.ls()]

    rows = list(pairs_of_index(index.store, kinds=["title"], find=find, negatives=2, skip=0))
    assert asked == [row["query"] for row in rows]
    assert all(len(row["negatives"]) == 2 for row in rows)  # type: ignore[arg-type]


def test_a_collection_that_is_not_there(index: qmd.Index) -> None:
    with pytest.raises(NotFound, match="nope"):
        index.training_pairs(collections=["nope"])


def test_only_documents_that_may_be_used(index: qmd.Index) -> None:
    rows = list(index.training_pairs(kinds=["title", "link"], keep=lambda d: d.path != "heat.md"))
    assert not any("Heat moves" in str(row["positive"]) for row in rows)


# ---- the adapter
@pytest.fixture
def teach(
    index: qmd.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[TrainConfig, AdaptedEmbedder]]:
    """`teach(key=value...)`: train on the index's pairs, open the result."""
    from qmd.vembed.convert import write_pairs
    from qmd.vembed.model import adapted

    monkeypatch.setattr(adapted, "open_embedder", lambda name: HashedWords())
    monkeypatch.setattr("qmd.llm.open_embedder", lambda name, **_: HashedWords())

    def run(**options: object) -> tuple[TrainConfig, AdaptedEmbedder]:
        write_pairs(index.training_pairs(), tmp_path / "pairs.jsonl")
        given = {"batch_size": 4, "epochs": 8, "learning_rate": "1e-2"} | options
        config = load_train_config(
            preset="index",
            defaults={
                "model_name_or_path": "hashed-words",
                "data_path": str(tmp_path / "pairs.jsonl"),
                "output_dir": str(tmp_path / "adapted"),
            },
            overrides=[f"{key}={value}" for key, value in given.items()],
        )
        train(config)
        _, matrix = read_adapter(tmp_path / "adapted")
        return config, AdaptedEmbedder(HashedWords(), matrix, "adapted")

    return run


def test_learns_reads_back_and_gives_the_same_vector_everywhere(
    teach: Callable[..., tuple[TrainConfig, AdaptedEmbedder]], tmp_path: Path
) -> None:
    from qmd.vembed import Predictor

    config, embedder = teach(feature_cache=tmp_path / "features.npz")
    curve = [
        r["loss"] for r in json.loads((Path(config.output_dir) / "curve.json").read_text()) if "loss" in r
    ]
    assert curve[-1] < curve[0]
    texts = ["lift of a wing", "Heat moves through layers"]
    np.testing.assert_allclose(
        Predictor(config.output_dir).encode_text(texts), embedder.embed_documents(texts), atol=1e-5
    )
    described, _ = read_adapter(Path(config.output_dir))
    assert described["trained"]["config"]["adapter"] == "residual"  # type: ignore[index]
    _, again = teach(feature_cache=tmp_path / "features.npz")
    np.testing.assert_array_equal(again.embed_documents(texts), embedder.embed_documents(texts))


def test_the_index_takes_the_new_vectors_without_reading_a_text(
    teach: Callable[..., tuple[TrainConfig, AdaptedEmbedder]], index: qmd.Index, tmp_path: Path
) -> None:
    _, embedder = teach()
    base: HashedWords = embedder.base  # type: ignore[assignment]
    base.texts = 0
    with qmd.open(tmp_path / "index.sqlite", config=Config(), embedder=embedder) as changed:
        report = changed.embed(model_changed=True)
        assert report.remaining == 0
        assert report.embedded > 0
        assert base.texts == 0
        hits = changed.vsearch("slipstream of a propeller")
        assert hits[0].path == "wing.md"
        (tmp_path / "notes" / "new.md").write_text(
            "# New\n\nA text that the base never saw is embedded as it is.\n"
        )
        changed.update()
        changed.embed()
        assert base.texts == 1
        [stored] = changed.store.vectors.models()
        assert stored.fingerprint == embedder.fingerprint != base.fingerprint


def test_an_adapter_of_another_base_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, np.eye(384, dtype=np.float32), base="all-MiniLM-L6-v2", base_fingerprint="other")
    with pytest.raises(ModelError, match="another version"):
        open_embedder(str(tmp_path))
    (tmp_path / "adapter.npy").write_bytes(b"x")
    with pytest.raises(ModelError, match="damaged"):
        open_embedder(str(tmp_path))
    with pytest.raises(ModelError, match="32"):
        AdaptedEmbedder(HashedWords(), np.eye(8, dtype=np.float32), "small")


def test_an_adapter_that_changes_nothing_is_the_base(tmp_path: Path) -> None:
    base = open_embedder("all-MiniLM-L6-v2")
    write_adapter(
        tmp_path,
        np.eye(base.dim, dtype=np.float32),
        base="all-MiniLM-L6-v2",
        base_fingerprint=base.fingerprint,
    )
    same = open_embedder(str(tmp_path))
    np.testing.assert_allclose(same.embed_query("a red circle"), base.embed_query("a red circle"), atol=1e-6)
    assert same.fingerprint != base.fingerprint


def test_check_knows_adapters_and_models_that_can_be_asked(tmp_path: Path) -> None:
    base = open_embedder("all-MiniLM-L6-v2")
    write_adapter(
        tmp_path, np.eye(384, dtype=np.float32), base="all-MiniLM-L6-v2", base_fingerprint=base.fingerprint
    )
    models = Models(embedding=str(tmp_path), reranker="smollm2-135m", image=None)
    told = {result.name: result for result in check_files(Config(models=models))}
    assert told["model embedding"].state == "ok"
    assert "over all-MiniLM-L6-v2" in told["model embedding"].message
    assert "not for reranker" not in told["model reranker"].message
    write_adapter(tmp_path, np.eye(384, dtype=np.float32), base=str(tmp_path), base_fingerprint="x")
    assert next(r.state for r in check_files(Config(models=models))) != "ok"


@pytest.mark.parametrize(
    "given", ["use_lora=true", "retrieval_mode=t2i", "encoder_mode=clip", "use_mrl=true"]
)
def test_what_does_not_fit_an_adapter_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="adapter"):
        load_train_config(
            preset="index", overrides=["model_name_or_path=m", "data_path=d", "output_dir=o", given]
        )
