"""What is found, what is left out, and why."""

import os
import socket
import sys
from pathlib import Path

import pytest

from qmd.errors import NotFound
from qmd.ingest.read import CannotRead, read_file
from qmd.ingest.walk import FoundFile, Skipped, walk


def make(root: Path, *names: str, text: str = "x") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def look(root: Path, **options: object) -> tuple[list[str], dict[str, str]]:
    found = list(walk(root, **options))  # type: ignore[arg-type]
    return (
        [f.path for f in found if isinstance(f, FoundFile)],
        {f.path: f.reason for f in found if isinstance(f, Skipped)},
    )


def test_nested_ignore_files(tmp_path: Path) -> None:
    make(tmp_path, "a.md", "b.log", "sub/keep.log", "sub/c.log", "build/x.md", "sub/deep/t.md", "q.md")
    (tmp_path / ".gitignore").write_text("*.log\n/build/\n")
    (tmp_path / "sub/.gitignore").write_text("!keep.log\ndeep/\n")
    (tmp_path / ".qmdignore").write_text("q.md\n")
    files, skipped = look(tmp_path)
    assert files == ["a.md", "sub/keep.log"]
    assert skipped["build/"] == skipped["b.log"] == skipped["sub/deep/"] == "ignored by .gitignore"
    assert skipped["q.md"] == "ignored by .qmdignore"


def test_secrets_binaries_hidden_and_huge(tmp_path: Path) -> None:
    make(
        tmp_path,
        ".env",
        "prod.env",
        "k.pem",
        "id_rsa",
        "id_card.md",
        ".git/x",
        "node_modules/y.md",
        "p.png",
        "big.txt",
    )
    (tmp_path / "big.txt").write_text("x" * 200)
    files, skipped = look(tmp_path, max_file_bytes=100)
    assert files == ["id_card.md"]
    assert all("secret" in skipped[n] for n in (".env", "prod.env", "k.pem", "id_rsa"))
    assert "hidden" in skipped[".git/"]
    assert "too large" in skipped["big.txt"]
    assert "binary" in skipped["p.png"]


def test_patterns(tmp_path: Path) -> None:
    make(tmp_path, "a.md", "s/b.md", "s/c.txt", "s/d.py")
    assert look(tmp_path, patterns=["**/*.{md,txt}"], ignore=["s/b.md"]) == (
        ["a.md", "s/c.txt"],
        {"s/b.md": "ignored by the collection"},
    )


def test_odd_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "ok.md", "a\nb.md")
    os.mkfifo(tmp_path / "pipe.md")
    os.mkfifo(tmp_path / ".gitignore")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "out.md").symlink_to("/etc/hostname")
    with socket.socket(socket.AF_UNIX) as s:
        monkeypatch.chdir(tmp_path)  # a socket's path has to be short
        s.bind("sock.md")
    files, skipped = look(tmp_path)
    assert files == ["a\nb.md", "ok.md"]
    assert skipped["pipe.md"] == skipped["sock.md"] == "not a regular file"
    assert skipped["loop"] == skipped["out.md"] == "symbolic link"
    files, skipped = look(tmp_path, follow_symlinks=True)
    assert "out.md" in skipped
    with pytest.raises(CannotRead):
        read_file(tmp_path / "pipe.md")
    with pytest.raises(CannotRead):
        read_file(tmp_path / "out.md")


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_name_that_is_no_utf8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.md", "w") as f:
        f.write("x")
    (found,) = walk(tmp_path)
    assert isinstance(found, FoundFile)
    assert found.path == "caf\\xE9.md"
    assert read_file(found.absolute) == b"x"


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        list(walk(tmp_path / "no"))


def test_patterns_that_only_exclude(tmp_path: Path) -> None:
    make(tmp_path, "a.md", "b.txt", "draft.md", "s/draft.md", "s/c.md")
    assert look(tmp_path, patterns=["!draft.md"])[0] == ["a.md", "b.txt", "s/c.md"]
    assert look(tmp_path, patterns=["*.md", "!draft.md"])[0] == ["a.md", "s/c.md"]


def test_a_link_leads_to_nothing_that_is_left_out_where_it_lies(tmp_path: Path) -> None:
    make(tmp_path, ".env", ".hidden/h.md", "node_modules/n.md", "priv/p.md", "notes/secret.md", "notes/n.md")
    make(tmp_path, "notes/drafts/old.md")
    (tmp_path / ".gitignore").write_text("/priv/\n/notes/secret.md\n")
    (tmp_path / "notes/.qmdignore").write_text("drafts/\n")
    for name, target in (
        ("pub.txt", ".env"),
        ("vis", ".hidden"),
        ("h.md", ".hidden/h.md"),
        ("nm", "node_modules"),
        ("n.md", "node_modules/n.md"),
        ("pl", "priv"),
        ("p.md", "priv/p.md"),
        ("s.md", "notes/secret.md"),
        ("old", "notes/drafts"),
        ("all", "notes"),
    ):
        (tmp_path / name).symlink_to(tmp_path / target)
    assert look(tmp_path, follow_symlinks=True)[0] == ["all/n.md"]


def test_ignore_globs_hold_behind_a_link(tmp_path: Path) -> None:
    make(tmp_path, "z/a.md", "z/b.md", "z/c.md")
    (tmp_path / "l").symlink_to(tmp_path / "z")
    files, _ = look(tmp_path, follow_symlinks=True, ignore=["l/a.md", "z/b.md"])
    assert files == ["l/c.md"]
