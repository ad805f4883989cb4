"""The inverted file beside the matrix: same hits as a scan, made when it pays, never trusted when it is not."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from qmd.search import inverted
from qmd.search.dense import Scan
from qmd.search.inverted import MatrixSearch, inverted_file

pytest.importorskip("torch")


@dataclass
class Matrix:
    rows: np.ndarray
    chunk_ids: np.ndarray
    stem: Path | None
    codes: np.ndarray | None = None
    scales: np.ndarray | None = None


def rows_of(n, seed=0, d=32):
    """Clustered and of unit length, as embeddings are."""
    rng = np.random.default_rng(seed)
    rows = np.random.default_rng(9).standard_normal((80, d))[rng.integers(0, 80, n)]
    rows = rows + 0.4 * rng.standard_normal((n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def matrix(n, stem):
    return Matrix(rows_of(n), np.arange(n) * 3 + 5, stem)


def share(found, wanted):
    return len(set(found.tolist()) & set(wanted.tolist())) / max(len(wanted), 1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(inverted, "_states", {})
    monkeypatch.setattr(inverted, "_EXACT_SUBSET", 300)
    monkeypatch.setattr(inverted, "_TAIL_ROWS", 400)


def forget(monkeypatch):
    monkeypatch.setattr(inverted, "_states", {})


def agreement(nearest, m, k=10, **how):
    scan, queries = Scan(m.rows, m.chunk_ids), rows_of(40, 7)
    shares = []
    for q in queries:
        ids, scores = nearest.search(q, k, **how)
        want, want_scores = scan.search(q, k, method="exact", **how)
        assert len(ids) == len(want)
        assert (np.diff(scores) <= 0).all()
        if ids[0] == want[0]:
            assert scores[0] == pytest.approx(want_scores[0], abs=1e-6)
        shares.append(share(ids, want))
    return float(np.mean(shares))


def test_it_is_made_once_and_finds_what_a_scan_finds(tmp_path, monkeypatch):
    m = matrix(12_000, tmp_path / "rows-a")
    first = MatrixSearch(m, "ivf")
    assert agreement(first, m) >= 0.98
    assert any("made an inverted file of 12,000 vectors" in n for n in first.notes)
    facts = inverted_file(m.stem)
    assert (facts.rows, facts.trained_rows) == (12_000, 12_000)
    assert facts.nprobe < facts.nlist, "all lists looked into: that is a scan"
    assert facts.recall >= 0.99
    made = (tmp_path / "rows-a.ivf").stat().st_mtime_ns
    forget(monkeypatch)  # another process
    second = MatrixSearch(m, "ivf")
    assert agreement(second, m) >= 0.98
    assert second.notes == []
    assert (tmp_path / "rows-a.ivf").stat().st_mtime_ns == made


def test_the_lists_are_what_is_read(tmp_path, monkeypatch):
    m = matrix(12_000, tmp_path / "rows-a")
    nearest = MatrixSearch(m, "ivf")
    nearest.search(m.rows[0], 5)
    monkeypatch.setattr(Scan, "search", lambda *a, **k: pytest.fail("scanned"))
    assert nearest.search(m.rows[3], 5)[0][0] == m.chunk_ids[3]


def test_copies_of_a_text_do_not_count_as_missed(tmp_path):
    """More copies than hits are looked for: which of them are named says nothing of the lists."""
    m = Matrix(np.repeat(rows_of(200), 150, axis=0), np.arange(30_000), tmp_path / "rows")
    MatrixSearch(m, "ivf").search(m.rows[0], 5)
    facts = inverted_file(m.stem)
    assert facts.recall >= inverted.TARGET_RECALL
    assert facts.nprobe < facts.nlist // 4


def test_lists_that_leave_nothing_out_are_not_read(tmp_path):
    """Rows without any likeness need all lists for the recall wanted; a scan is the cheaper way through them."""
    rows = np.random.default_rng(0).standard_normal((6_000, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    m = Matrix(rows, np.arange(6_000), tmp_path / "rows")
    nearest = MatrixSearch(m, "ivf")
    nearest.search(rows[0], 5)
    facts = inverted_file(m.stem)
    assert 2 * facts.nprobe > facts.nlist
    ids, _ = nearest.search(rows[0], 5)
    assert ids.tolist() == Scan(m.rows, m.chunk_ids).search(rows[0], 5)[0].tolist()
    assert inverted._search(object(), facts, m, Scan(m.rows, m.chunk_ids), rows[0], 5, None) is None


def test_filters_go_inside(tmp_path):
    m = matrix(12_000, tmp_path / "rows-a")
    nearest = MatrixSearch(m, "ivf")
    for step in (2, 7, 100, 5000):
        allowed = m.chunk_ids[::step]
        assert agreement(nearest, m, allowed=allowed) >= 0.98
        assert set(nearest.search(m.rows[1], 10, allowed=allowed)[0]) <= set(allowed)
    assert nearest.search(m.rows[1], 10, allowed=np.array([4], np.int64))[0].tolist() == []


def test_gone_rows_are_not_found_and_new_ones_are(tmp_path, monkeypatch):
    m = matrix(12_300, tmp_path / "rows-a")
    old = Matrix(m.rows[:12_000], m.chunk_ids[:12_000], m.stem)
    MatrixSearch(old, "ivf").search(m.rows[0], 3)
    ids = m.chunk_ids.copy()
    ids[::5] = -1
    grown = Matrix(m.rows, ids, m.stem)
    nearest = MatrixSearch(grown, "ivf")
    assert agreement(nearest, grown) >= 0.98
    assert inverted_file(m.stem).rows == 12_000  # 300 newer rows are scanned
    assert nearest.search(m.rows[12_111], 1)[0].tolist() == [ids[12_111]]
    assert ids[0] not in nearest.search(m.rows[0], 5)[0]


def test_it_takes_in_many_new_rows_and_is_trained_anew_when_twice_as_large(tmp_path):
    m = matrix(30_000, tmp_path / "rows-a")
    for n, trained in ((12_000, 12_000), (14_000, 12_000), (30_000, 30_000)):
        part = Matrix(m.rows[:n], m.chunk_ids[:n], m.stem)
        nearest = MatrixSearch(part, "ivf")
        assert agreement(nearest, part) >= 0.97
        facts = inverted_file(m.stem)
        assert (facts.rows, facts.trained_rows) == (n, trained)
    assert agreement(MatrixSearch(Matrix(m.rows[:13_000], m.chunk_ids[:13_000], m.stem), "ivf"), part) > 0


@pytest.mark.parametrize("damage", ["index", "facts", "version"])
def test_damage_is_made_good(tmp_path, monkeypatch, damage):
    m = matrix(5_000, tmp_path / "rows-a")
    MatrixSearch(m, "ivf").search(m.rows[0], 3)
    forget(monkeypatch)
    if damage == "index":
        (tmp_path / "rows-a.ivf").write_bytes(b"rubbish")
    elif damage == "facts":
        (tmp_path / "rows-a.ivf.json").write_text("{")
    else:
        facts = json.loads((tmp_path / "rows-a.ivf.json").read_text())
        (tmp_path / "rows-a.ivf.json").write_text(json.dumps(facts | {"version": 99}))
    nearest = MatrixSearch(m, "ivf")
    assert nearest.search(m.rows[8], 1)[0].tolist() == [m.chunk_ids[8]]
    assert inverted_file(m.stem).rows == 5_000


def test_what_cannot_be_written_is_said_and_scanned(tmp_path):
    m = matrix(5_000, tmp_path / "no such folder" / "rows-a")
    nearest = MatrixSearch(m, "ivf")
    assert agreement(nearest, m) == 1.0
    assert "could not be made" in nearest.notes[0]


def test_without_torch_it_scans_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(inverted.importlib.util, "find_spec", lambda name: None)
    m = matrix(5_000, tmp_path / "rows-a")
    nearest = MatrixSearch(m, "ivf")
    assert agreement(nearest, m) == 1.0
    assert "needs torch" in nearest.notes[0]
    assert list(tmp_path.iterdir()) == []


def test_auto_weighs_size_and_time_spent(tmp_path, monkeypatch):
    m = matrix(5_000, tmp_path / "rows-a")
    MatrixSearch(m, "auto").search(m.rows[0], 3)
    MatrixSearch(m, "exact").search(m.rows[0], 3)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(inverted, "AUTO_ROWS", 4_000)
    nearest = MatrixSearch(m, "auto")
    nearest.search(m.rows[0], 3)
    assert list(tmp_path.iterdir()) == []  # scanning has cost nothing yet
    inverted._states[m.stem].scanned_s = inverted.BUILD_AFTER_S + 1
    nearest.search(m.rows[0], 3)
    inverted._states[m.stem].builder.join()
    assert inverted_file(m.stem).rows == 5_000
    monkeypatch.setattr(Scan, "search", lambda *a, **k: pytest.fail("scanned"))
    assert nearest.search(m.rows[2], 1)[0].tolist() == [m.chunk_ids[2]]


def test_a_matrix_in_memory_is_scanned():
    m = matrix(5_000, None)
    assert agreement(MatrixSearch(m, "ivf"), m) == 1.0
    assert inverted_file(None) is None


def test_from_configuration_to_status(tmp_path, monkeypatch):
    from tests.test_index import WordEmbedder

    import qmd
    from qmd.config import Config, Models, Search
    from qmd.serve.cli.commands_upkeep import _status_lines

    monkeypatch.setattr(inverted, "LEAST_ROWS", 50)
    notes = tmp_path / "notes"
    notes.mkdir()
    words = [a + b for a in ("ba", "co", "du", "fi", "gle") for b in ("m", "nt", "rk", "st")]
    for i in range(400):
        chosen = [words[(i * p + p) % 20] for p in (1, 3, 7)]
        (notes / f"{i}.md").write_text(f"# Note {i}\n\n{' '.join(chosen)} item{i}\n")
    config = Config(models=Models(embedding="words"), search=Search(vectors="ivf"))
    with qmd.open(tmp_path / "data", config=config, embedder=WordEmbedder()) as index:
        index.add(notes)
        assert all(m.inverted is None for m in index.status().vectors)
        hits = index.vsearch("Note 7 item7", limit=3)
        assert hits[0].title == "Note 7"
        assert any("made an inverted file of 400 vectors" in note for note in hits.degraded)
        assert index.vsearch("Note 9 item9", limit=1)[0].title == "Note 9"
        asked = []
        with monkeypatch.context() as watched:
            watched.setattr(
                inverted, "_search", lambda *a, f=inverted._search: asked.append(f(*a)) or asked[-1]
            )
            alike = index.similar("7.md", limit=3)
        assert asked
        status = index.status()
        assert status.vectors[0].inverted.rows == 400
        assert any("inverted file of 400 vectors" in line for line in _status_lines(status))
    exact = Config(models=Models(embedding="words"), search=Search(vectors="exact"))
    with qmd.open(tmp_path / "data", config=exact, embedder=WordEmbedder()) as index:
        same = index.vsearch("Note 7 item7", limit=3)
        assert [h.title for h in same] == [h.title for h in hits]
        assert {h.title for h in index.similar("7.md", limit=3)} == {h.title for h in alike}
