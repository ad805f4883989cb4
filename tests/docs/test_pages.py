"""The documentation is true: commands and code blocks run, relative links exist, translations agree."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_pages import REPO, Block, Page, all_pages, broken_links, commands, read_page, slug

PAGES = all_pages()
SHELL = {"console", "bash", "sh", "shell"}
NETWORK = re.compile(r"^\s*(?:sudo |git clone|curl |wget |pip |pipx |uv |uvx |npm |apt)", re.MULTILINE)
ADDRESS = re.compile(r"qmd://[^\s\"'<>,]+?(?=[:#]\d|[\s\"'<>,]|$)")

Run = Callable[[str], "subprocess.CompletedProcess[str]"]


def page_id(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(read_page(path)) == []


@pytest.fixture
def page(request: pytest.FixtureRequest) -> Page:
    page = read_page(request.param)
    missing = [n for n in page.setup.needs if importlib.util.find_spec(n) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"{page.name} needs {', '.join(missing)}")
    return page


@pytest.fixture
def shell(
    page: Page, fresh_home: Callable[[str], Path], sandbox_env: Callable[[Path], dict[str, str]]
) -> Iterator[Run]:
    """Run a script in the home folder of the pages; also make that folder the one that Python blocks see."""
    home = fresh_home(page.setup.index)
    env = sandbox_env(home)

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=home / "work",
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=page.setup.timeout_s,
        )

    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("QMD_", "XDG_"))]:
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        patch.chdir(home / "work")
        yield run


RUN = SHELL | {"python", "yaml", "json", "toml"}
# A translated page has the commands of the English one, as another test checks: running them once is enough.
RUNNABLE = [p for p in PAGES if p.name.count(".") == 1 and any(b.lang in RUN for b in read_page(p).blocks)]


@pytest.mark.parametrize("page", RUNNABLE, ids=page_id, indirect=True)
def test_blocks_run(page: Page, shell: Run) -> None:
    names: dict[str, Any] = {"__name__": "__docs__"}
    for block in page.blocks:
        where = f"{page.name}:{block.line}"
        if block.lang in SHELL:
            _run_shell(block, shell, where)
        elif block.lang == "python":
            # As many newlines in front as there are lines above, so that a traceback names the page's line.
            exec(compile("\n" * block.line + block.text, str(page.path), "exec"), names)
        elif block.lang == "yaml":
            list(yaml.safe_load_all(block.text))
        elif block.lang == "json":
            json.loads(block.text)
        elif block.lang == "toml":
            tomllib.loads(block.text)


def _run_shell(block: Block, shell: Run, where: str) -> None:
    scripts = commands(block) if block.lang == "console" else [(block.text, "")]
    for script, shown in scripts:
        assert not NETWORK.search(script), f"{where}: needs a network; fence it as `text`: {script}"
        if script.startswith("make "):
            done = subprocess.run(
                ["make", "-n", "-C", str(REPO), *script.split()[1:]], capture_output=True, text=True
            )
        else:
            done = shell(script)
        report = f"{where}: $ {script}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, report
        absent = set(ADDRESS.findall(shown)) - set(ADDRESS.findall(done.stdout))
        assert not absent, f"the page shows {sorted(absent)}, the command does not.\n{report}"


def _all_commands(page: Page) -> list[str]:
    """Commands and code of a page, without the output shown."""
    found: list[str] = []
    for block in page.blocks:
        if block.lang == "console":
            found.extend(command for command, _ in commands(block))
        elif block.lang != "text":
            found.append(re.sub(r"\s*#.*", "", block.text))
    return found


@pytest.mark.parametrize("lang", ["zh", "ja"])
@pytest.mark.parametrize("name", ["README", "docs/training"])
def test_translations_have_the_same_commands(name: str, lang: str) -> None:
    english, other = read_page(REPO / f"{name}.md"), read_page(REPO / f"{name}.{lang}.md")
    assert _all_commands(other) == _all_commands(english)
    assert [b.lang for b in other.blocks] == [b.lang for b in english.blocks]


def test_changelog_has_the_parts_of_its_format() -> None:
    page = read_page(REPO / "CHANGELOG.md")
    assert "unreleased" in page.anchors
    assert page.anchors & {"added", "changed", "fixed", "removed", "deprecated", "security"}


@pytest.mark.parametrize(
    ("heading", "expected"),
    [("First steps", "first-steps"), ("What `qmd` does, and why", "what-qmd-does-and-why"), ("安装", "安装")],
)
def test_slug(heading: str, expected: str) -> None:
    assert slug(heading) == expected


def test_commands_of_a_console_block() -> None:
    block = Block("console", "$ echo a \\\n> b\na b\n$ true\n", 1)
    assert commands(block) == [("echo a \\\nb", "a b\n"), ("true", "")]


def test_a_block_that_fails_is_reported(tmp_path: Path) -> None:
    def shell(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-euc", script], capture_output=True, text=True)

    with pytest.raises(AssertionError, match="page:3"):
        _run_shell(Block("bash", "false\n", 3), shell, "page:3")
    with pytest.raises(AssertionError, match=r"gone\.md"):
        _run_shell(Block("console", "$ echo qmd://vault/x.md\nqmd://vault/gone.md:3\n", 3), shell, "page:3")
    with pytest.raises(AssertionError, match="needs a network"):
        _run_shell(Block("bash", "pip install qmd-python\n", 3), shell, "page:3")
