"""The sample vault is whole: links lead somewhere, front matter parses, texts name their sources."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

VAULT = Path(__file__).resolve().parents[1] / "examples" / "vault"
FILES = sorted(p for p in VAULT.rglob("*") if p.is_file() and "templates" not in p.parts)
NOTES = [p for p in FILES if p.suffix == ".md"]


def fields(path: Path) -> dict[str, object]:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("---\n"), path
    loaded = yaml.safe_load(text.split("---\n", 2)[1])
    assert isinstance(loaded, dict), path
    return loaded


def name(path: Path) -> str:
    return path.relative_to(VAULT).as_posix()


def test_size_and_variety() -> None:
    assert 60 <= len(FILES) <= 80
    assert sum(p.stat().st_size for p in FILES) < 600_000
    kinds = {".md", ".txt", ".org", ".rst", ".py", ".json", ".ipynb", ".html", ".csv"}
    assert kinds <= {p.suffix for p in FILES}
    sizes = sorted(p.stat().st_size for p in NOTES)
    assert sizes[0] < 500
    assert sizes[-1] > 12_000


def test_every_language_has_its_share() -> None:
    tags = [str(tag) for p in NOTES for tag in fields(p).get("tags", ())]  # type: ignore[attr-defined]
    for lang in ("lang/en", "lang/zh", "lang/ja"):
        assert tags.count(lang) >= 12, lang


@pytest.mark.parametrize("path", NOTES, ids=name)
def test_links_lead_to_notes(path: Path) -> None:
    known = {p.stem for p in FILES} | {p.name for p in FILES}
    for note in NOTES:
        known.update(map(str, fields(note).get("aliases") or ()))  # type: ignore[call-overload]
    text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\[\[([^\]|#]+)", text)
    assert [t for t in targets if t not in known] == []


def test_every_text_of_the_library_names_its_source() -> None:
    sources = (VAULT / "SOURCES.md").read_text(encoding="utf-8")
    library = sorted(p.name for p in (VAULT / "library").iterdir())
    assert re.findall(r"^\| (\S+\.(?:md|txt)) \|", sources, re.MULTILINE)
    assert sorted(re.findall(r"^\| (\S+\.(?:md|txt)) \|", sources, re.MULTILINE)) == library


def test_notebook_and_settings_are_json() -> None:
    assert json.loads((VAULT / "code/hydrograph.ipynb").read_text(encoding="utf-8"))["nbformat"] == 4
    assert json.loads((VAULT / "code/editor-settings.json").read_text(encoding="utf-8"))
