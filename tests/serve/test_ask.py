from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import qmd.index
from qmd.search import answer as answers
from qmd.serve.cli.app import root


class Parrot:
    name = "parrot"

    def __init__(self, text: str) -> None:
        self.text = text

    def write(self, messages, *, keep="", max_new_tokens=160, stream=None):
        stream(self.text)
        return self.text


@pytest.fixture
def ask(tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "garden.md").write_text("# Tomatoes\n\nWater the tomatoes every second morning.\n")
    (tmp_path / "data").mkdir()
    with qmd.index.open(tmp_path / "data" / "index.sqlite") as index:
        index.add(tmp_path / "notes", name="notes", embed=False)
    said = {"text": "Every second morning [1]."}
    monkeypatch.setattr(answers, "open_writer", lambda model, data_dir=None: Parrot(said["text"]))

    def run(*words: str, text: str = "Water the tomatoes every second morning [1]."):
        said["text"] = text
        return CliRunner().invoke(
            root, ["ask", *words, "--data-dir", str(tmp_path / "data"), "--config-dir", str(tmp_path)]
        )

    return run


def test_answer_with_citation_and_source(ask):
    result = ask("when", "do I water tomatoes")
    assert result.exit_code == 0, result.output
    assert "every second morning" in result.output
    assert "[1] qmd://notes/garden.md:" in result.output


def test_json_and_follow_up(ask):
    found = json.loads(ask("water tomatoes when", "--json").stdout)
    assert found["found"] is True
    assert found["sources"][0]["file"] == "qmd://notes/garden.md"
    assert found["claims"][0]["supported"] is True
    again = json.loads(ask("and the leaves?", "--follow-up", "--json", text="Purple penguins dance.").stdout)
    assert again["found"] is True
    assert again["claims"][0]["supported"] is False
    assert again["quote"]["text"].startswith("Water the tomatoes")


def test_nothing_found(ask):
    result = ask("quantum chromodynamics lattice")
    assert result.exit_code == 0
    assert answers.NOTHING_FOUND in result.output
