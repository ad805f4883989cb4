import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmd
from qmd.search import snippet as snippet_module
from qmd.search.scripts import foreign_share
from qmd.search.snippet import CHARACTERS, Marker, front_matter


def cut_snippet(text, first, words, stems):
    return snippet_module.cut_snippet(text, first, Marker(words, stems))


def test_the_best_lines_with_their_numbers():
    text = "intro\n\nsomething else\nnothing\nnothing\nhow to allocate memory\nand free memory\n"
    snippet = cut_snippet(text, 10, ["allocate", "memory"], ["alloc", "memori"])
    assert snippet.line == 15
    assert snippet.text.startswith("how to allocate memory\nand free memory")
    assert [snippet.text[a:b] for a, b in snippet.marks] == ["allocate", "memory", "memory"]


def test_inflections_and_accents_are_marked():
    snippet = cut_snippet("Naïve structures, structural.", 1, ["naive", "structure"], ["naiv", "structur"])
    assert [snippet.text[a:b] for a, b in snippet.marks] == ["Naïve", "structures", "structural"]


def test_cjk_bigrams_are_marked_as_one_run():
    snippet = cut_snippet("请先设置文件权限。", 3, ["文件", "件权", "权限"], [])
    assert [snippet.text[a:b] for a, b in snippet.marks] == ["文件权限"]


def test_without_a_match_the_first_line_that_says_something():
    assert cut_snippet("\n---\n\nHello\n", 5, [], []).line == 8


@given(st.text(), st.lists(st.text(min_size=1, max_size=4), max_size=4), st.integers(1, 50))
def test_it_is_a_slice_of_the_text_at_the_line_it_says(text, words, first):
    snippet = cut_snippet(text, first, words, words)
    lines = text.split("\n")
    shown = snippet.text.split("\n")
    assert len(snippet.text) <= CHARACTERS + 10
    assert snippet.end_line - snippet.line + 1 == len(shown)
    for offset, line in enumerate(shown):
        assert line in lines[snippet.line - first + offset]
    assert all(0 <= a < b <= len(snippet.text) for a, b in snippet.marks)


def test_scripts_a_model_does_not_read():
    assert foreign_share("how to allocate memory", ("en",)) == 0
    assert foreign_share("naïve café", ("en",)) == 0
    assert foreign_share("如何设置文件权限", ("en",)) == 1
    assert foreign_share("如何设置文件权限", ("zh",)) == 0
    assert foreign_share("如何设置文件权限", ()) == 0
    assert foreign_share("ファイルの権限", ("zh",)) > 0.4
    assert foreign_share("как настроить", ("en",)) == 1
    assert 0.3 < foreign_share("如何设置 docker compose", ("en",)) < 0.7


def test_where_front_matter_ends():
    assert front_matter("---\ntitle: x\n---\n\nBody\n") == len("---\ntitle: x\n---\n")
    assert front_matter("---\n---\nBody") == len("---\n---\n")
    assert front_matter("# Title\n\n---\n\nBody\n\n---\n") == 0
    assert front_matter("---\nnever closed\n") == 0
    assert front_matter("") == 0


@pytest.fixture(scope="module")
def fronted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fronted")
    (folder / "short.md").write_text(
        "---\ntitle: Zebra plan\ntags: [garden, wildlife]\n---\n\nFirst body line.\n\nAbout water, second.\n"
    )
    lines = "".join(
        f"  line {i} of a front matter that fills several passages by itself\n" for i in range(80)
    )
    (folder / "long.md").write_text(f"---\ntags: [giraffe]\nnotes: |\n{lines}---\n\n# Heading\n\nThe body.\n")
    (folder / "only.md").write_text("---\ntags: [okapi]\n---\n")
    with qmd.open(folder.parent / "fronted.sqlite") as index:
        index.add(folder, embed=False)
        yield index


@pytest.mark.parametrize(
    "query, path, line, begins",
    [
        ("zebra", "short.md", 6, "First body line."),
        ("wildlife", "short.md", 6, "First body line."),
        ("garden water", "short.md", 8, "About water, second."),
        ("giraffe", "long.md", 86, "# Heading"),
        ("passages itself", "long.md", 86, "# Heading"),
    ],
)
def test_front_matter_is_found_but_never_shown(fronted, query, path, line, begins):
    hit = fronted.search(query)[0]
    assert (hit.path, hit.line) == (path, line)
    assert hit.snippet.startswith(begins)
    shown = fronted.get(f"{hit.file}:{hit.line}:{hit.end_line - hit.line + 1}").text
    assert shown == hit.snippet
    assert all(hit.snippet[a:b].casefold() in query for a, b in hit.marks)


def test_a_note_of_front_matter_alone_shows_nothing(fronted):
    hit = fronted.search("okapi")[0]
    assert (hit.path, hit.snippet, hit.marks) == ("only.md", "", ())
