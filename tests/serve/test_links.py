"""Links into an Obsidian vault, and the setting that turns links on a terminal off."""

from __future__ import annotations

import io
from pathlib import Path, PureWindowsPath

import pytest

from qmd.serve.cli.disk import link_target
from qmd.serve.cli.screen import likely_links
from qmd.serve.vault import find_vault, obsidian_link


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    vault = tmp_path / "My Vault & more"
    (vault / ".obsidian").mkdir(parents=True)
    (vault / "sub" / "deep").mkdir(parents=True)
    return vault


def test_the_vault_is_at_or_above_the_collection(vault: Path) -> None:
    assert find_vault(vault) == vault
    assert find_vault(vault / "sub" / "deep") == vault
    assert find_vault(vault.parent) is None
    (vault / "sub" / ".obsidian").mkdir()
    assert find_vault(vault / "sub" / "deep") == vault / "sub"


def test_the_link_names_vault_and_file(vault: Path) -> None:
    link = obsidian_link(vault, vault / "sub" / "été 1?.md")
    assert link == "obsidian://open?vault=My%20Vault%20%26%20more&file=sub%2F%C3%A9t%C3%A9%201%3F"
    assert obsidian_link(vault, vault / "a.pdf") == "obsidian://open?vault=My%20Vault%20%26%20more&file=a.pdf"


def test_what_lies_outside_of_the_vault_has_no_link(vault: Path) -> None:
    assert obsidian_link(vault, vault.parent / "x.md") is None
    assert obsidian_link(vault, vault / ".." / "x.md") is None


def test_the_terminal_links_to_obsidian_unless_an_editor_is_set(
    vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QMD_EDITOR_URI", raising=False)
    monkeypatch.setenv("TERM_PROGRAM", "WezTerm")
    note = vault / "sub" / "a.md"
    assert link_target(note, vault / "sub").startswith("obsidian://open?vault=My%20Vault")
    assert link_target(note, None).startswith("file://")
    assert link_target(vault.parent / "b.md", vault.parent).startswith("file://")
    monkeypatch.setenv("TERM_PROGRAM", "vscode")
    assert link_target(note, vault / "sub").startswith("vscode://file/")
    monkeypatch.setenv("QMD_EDITOR_URI", "zed://file{path}:{line}")
    assert link_target(note, vault / "sub").startswith("zed://file/")


def test_links_to_a_disk_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QMD_EDITOR_URI", "TERM_PROGRAM"):
        monkeypatch.delenv(name, raising=False)
    note = PureWindowsPath(r"C:\Users\me\notes\a b.md")
    assert link_target(note) == "file:///C:/Users/me/notes/a%20b.md"
    monkeypatch.setenv("TERM_PROGRAM", "vscode")
    assert link_target(note) == "vscode://file/C:/Users/me/notes/a%20b.md:{line}:1"


def test_no_hyperlink_turns_links_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("TERM_PROGRAM", "WezTerm")
    monkeypatch.delenv("NO_HYPERLINK", raising=False)
    assert likely_links(Terminal())
    monkeypatch.setenv("NO_HYPERLINK", "1")
    assert not likely_links(Terminal())


def test_a_hit_in_a_vault_carries_its_link(vault: Path, tmp_path: Path) -> None:
    import qmd
    from qmd.serve.mcp.operations import Operations
    from qmd.serve.mcp.tools import Call

    (vault / "sub" / "soup.md").write_text("# Soup\n\nBoil water.\n")
    with qmd.open(tmp_path / "data") as index:
        index.add(vault / "sub", name="sub", embed=False)
        params = {"name": "query", "arguments": {"searches": [{"type": "lex", "query": "water"}]}}
        [hit] = Operations(lambda: index).call_tool(params, Call())["structuredContent"]["results"]
    assert hit["link"] == "obsidian://open?vault=My%20Vault%20%26%20more&file=sub%2Fsoup"


def test_addresses_may_be_percent_encoded_and_names_with_percent_signs_come_first(tmp_path: Path) -> None:
    import qmd
    from qmd.errors import NotFound

    notes = tmp_path / "notes"
    notes.mkdir()
    for name in ("a b.md", "a%20b.md", "100% sure.md"):
        (notes / name).write_text(f"# {name}\n")
    with qmd.open(tmp_path / "data") as index:
        index.add(notes, name="notes", embed=False)
        assert index.get("qmd://notes/a b.md").path == "a b.md"
        assert index.get("qmd://notes/a%20b.md").path == "a%20b.md"
        assert index.get("qmd://notes/a%2520b.md").path == "a%20b.md"
        assert index.get("qmd://notes/100%25%20sure.md:1:1").path == "100% sure.md"
        assert index.multi_get("qmd://notes/100%25%20sure.md")[0].file == "qmd://notes/100% sure.md"
        with pytest.raises(NotFound):
            index.get("qmd://notes/%2e%2e/secret.md")
