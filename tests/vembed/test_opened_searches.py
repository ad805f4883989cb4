"""Searches whose hit was opened teach, where the user wants them kept; otherwise nothing is written."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

import qmd
from qmd.config import Config, Memory, Places
from qmd.errors import ConfigError
from qmd.store import opened
from qmd.store.opened import OpenedSearches
from qmd.trust import load_config_of

NOTES = {
    "wing.md": "# Lift\n\nThe slipstream of a propeller raises the lift of the wing behind it by a whole third.\n",
    "heat.md": "# Conduction\n\nHeat moves through layers of metal as if each were a resistance of its own there.\n",
}


def opened_index(folder: Path, *, searches: bool) -> qmd.Index:
    (folder / "notes").mkdir(exist_ok=True)
    for name, text in NOTES.items():
        (folder / "notes" / name).write_text(text)
    index = qmd.open(folder / "index.sqlite", config=Config(memory=Memory(searches=searches)), create=True)
    index.add(folder / "notes", embed=False)
    return index


def taught(index: qmd.Index) -> list[tuple[object, str]]:
    return [(row["query"], str(row["positive"])[:4]) for row in index.training_pairs(kinds=["search"])]


def test_nothing_is_kept_unless_asked_for(tmp_path: Path) -> None:
    with opened_index(tmp_path, searches=False) as index:
        hit = index.search("propeller")[0]
        index.get(hit.docid)
        assert taught(index) == []
    assert not (tmp_path / "index.searches").exists()


def test_an_opened_hit_teaches_and_can_be_forgotten(tmp_path: Path) -> None:
    with opened_index(tmp_path, searches=True) as index:
        index.search("metal")
        index.search('propeller "lift" -balloon')
    with opened_index(tmp_path, searches=True) as index:  # another process, as `qmd get` after `qmd search`
        index.get("wing.md")
        index.get("heat.md")
        index.get("heat.md")
        assert taught(index) == [("metal", "Heat"), ("propeller lift", "The ")]
        list(index.training_pairs(kinds=["title"], negatives=1))  # its own searches are nobody's questions
        index.get("wing.md")
        assert len(taught(index)) == 2
        assert stat.S_IMODE((tmp_path / "index.searches").stat().st_mode) == 0o600
        assert index.cleanup(forget_searches=True).searches_forgotten == 2
        assert taught(index) == []
    assert not (tmp_path / "index.searches").exists()


def test_only_what_was_shown_and_only_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = OpenedSearches(tmp_path / "x.searches")
    kept.opened("a")
    assert not kept.path.exists()
    kept.showed("first", ["a", "b"])
    kept.showed("x" * 500, ["a"])
    kept.showed("second", ["b"])
    for docid in ("a", "b", "c"):
        kept.opened(docid)
    assert kept.pairs() == [("first", "a"), ("second", "b")]
    monkeypatch.setattr(opened, "SESSION_S", -1.0)
    kept.opened("b")
    assert len(kept.pairs()) == 2


def test_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "MOST_OPENED", 3)
    kept = OpenedSearches(tmp_path / "x.searches")
    for number in range(6):
        kept.showed(f"question {number}", ["a"])
        kept.opened("a")
    assert [question for question, _ in kept.pairs()] == ["question 3", "question 4", "question 5"]


def test_what_an_answer_is_written_from_was_opened_by_nobody(tmp_path: Path) -> None:
    class Silent:
        name = "silent"

        def write(self, messages: object, **_: object) -> str:
            return "A whole third [1]."

    with opened_index(tmp_path, searches=True) as index:
        assert index.ask("how does the slipstream raise the lift", writer=Silent()).sources
        assert taught(index) == []
        index.get("wing.md")
        assert len(taught(index)) == 1


def test_a_damaged_file_is_done_without(tmp_path: Path) -> None:
    path = tmp_path / "x.searches"
    path.write_bytes(b"not a database" * 100)
    kept = OpenedSearches(path)
    kept.showed("question", ["a"])
    kept.opened("a")
    assert kept.pairs() == []
    assert kept.forget() == 0
    assert not path.exists()


def test_a_stranger_s_project_may_not_turn_it_on(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("memory:\n  searches: true\n")
    with pytest.raises(ConfigError, match=r"memory\.searches"):
        load_config_of(Places(tmp_path, tmp_path, project=tmp_path))
