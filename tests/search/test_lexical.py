import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import qmd
from qmd.search import lexical
from qmd.search.query import parse
from qmd.types import Filter

NOTES = {
    "memory.md": "# Memory\n\nHow to allocate memory on the heap with malloc.\n",
    "free.md": "# Release\n\nMemory that was allocated must be given back.\n",
    "permission.md": "# File permissions\n\nThe mode of a file is changed with chmod.\n",
    "fault.md": "# Kernel\n\nA page fault happens when a page is not in memory.\n",
    "page.md": "# Book\n\nThe fault is mine: the page was torn.\n",
    "cafe.md": "# Café\n\nÅngström and naïve visitors drink coffee.\n",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notes")
    for name, text in NOTES.items():
        (folder / name).write_text(text, encoding="utf-8")
    with qmd.open(folder.parent / "lexical.sqlite") as opened:
        opened.add(folder, name="notes", embed=False)
        yield opened


def paths(hits):
    return [hit.path for hit in hits]


def test_every_word_first_then_some(index):
    hits = index.search("allocate heap memory", explain=True)
    assert hits[0].path == "memory.md"
    assert hits[0].explain["all_words"] is True
    assert "free.md" in paths(hits)
    assert hits[1].explain["all_words"] is False
    assert hits[0].score >= hits[1].score


def test_one_known_word_among_unknown_ones_still_finds(index):
    """With the unknown words left out a single word remains; asking for all of them must not be the end."""
    assert paths(index.search("malloc xyq zzv")) == ["memory.md"]


def test_phrases_prefixes_exclusions(index):
    assert paths(index.search('"page fault"')) == ["fault.md"]
    assert set(paths(index.search("page fault"))) == {"fault.md", "page.md"}
    assert paths(index.search("mall*")) == ["memory.md"]
    assert paths(index.search("page -kernel")) == ["page.md"]
    assert paths(index.search('page -"page fault"')) == ["page.md"]


def test_a_phrase_that_stands_nowhere_is_said_to_be_missing(index):
    hits = index.search('"heap fault"')
    assert hits
    assert "no passage has what was quoted" in hits.degraded[0]


@pytest.mark.parametrize("typed", ["cafe", "CAFÉ", "Cafe\u0301", "angstrom", "naive"])
def test_accents_and_case_are_folded(index, typed):
    assert paths(index.search(typed)) == ["cafe.md"]
    assert index.search(typed).degraded == ()


@pytest.mark.parametrize("typed", ["permision", "permissoin", "perimssion", "permissiom"])
def test_one_typo_in_a_long_word_still_finds_and_says_so(index, typed):
    hits = index.search(f"file {typed}")
    assert hits[0].path == "permission.md"
    assert typed in hits.degraded[0]


def test_a_typo_in_a_short_word_is_left_alone(index):
    assert index.search("hepa").degraded == ()


@pytest.mark.parametrize(
    "query, expected",
    [
        ("path:f* memory", {"free.md", "fault.md"}),
        ("title:kernel memory", {"fault.md"}),
        ("type:python memory", set()),
        ("before:1990 memory", set()),
        ("after:1990 heap", {"memory.md"}),
    ],
)
def test_fields_narrow(index, query, expected):
    assert set(paths(index.search(query))) == expected


OPERATORS = st.sampled_from(
    [*list('"-*:()^{}+,.\x00�'), "AND", "OR", "NOT", "NEAR(", "path:", "tag:", "before:", "权限"]
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(OPERATORS, st.text(max_size=6)), max_size=8).map("".join))
@example('"')
@example('-"')
@example("a NEAR(b c, 3) {title}: ^x + y*")
@example("*")
@example("\u0301")
@example("權*限")
def test_no_string_is_a_syntax_error(index, text):
    query = parse(text)
    lexical.find_all_first(index.store.keyword, query, 10)
    lexical.find_best(index.store.keyword, query, 10)
    for expression in lexical.exclusions(query):
        index.store.keyword.candidates(expression)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """400 notes of common words, three with a rare one."""
    folder = tmp_path_factory.mktemp("many")
    common = ["alpha", "beta", "gamma", "delta"]
    for number in range(400):
        words = [w for i, w in enumerate(common) if number % (i + 2) == 0] + [f"only{number}"] * (
            number % 7 + 1
        )
        words += ["rare"] if number in (7, 30, 60) else []
        tag = "---\ntags: [odd]\n---\n\n" if number % 2 else ""
        (folder / f"{number}.md").write_text(tag + " ".join(words) + "\n", encoding="utf-8")
    with qmd.open(folder.parent / "many.sqlite") as opened:
        opened.add(folder, embed=False)
        yield opened


def test_without_very_common_words_the_best_stay_the_best(many, monkeypatch):
    query = parse("alpha beta gamma delta rare")
    full = lexical.find_best(many.store.keyword, query, 10)
    monkeypatch.setattr(lexical, "POSTINGS", 150)
    pruned = lexical.find_best(many.store.keyword, query, 10)
    assert not pruned.pruned
    monkeypatch.setattr(lexical, "WEIGHTLESS_SHARE", 0.4)
    pruned = lexical.find_best(many.store.keyword, query, 10)
    assert pruned.pruned
    assert [chunk for chunk, _ in pruned.ranked[:3]] == [chunk for chunk, _ in full.ranked[:3]]


@pytest.mark.parametrize(
    "text", ["gamma delta rare", "beta gamma delta", 'beta "gamma delta"', "beta gam*", "beta -gamma"]
)
@pytest.mark.parametrize("wanted", [Filter(), Filter(tags=("odd",))])
def test_ranking_from_memory_equals_ranking_by_fts5(many, monkeypatch, text, wanted):
    query, keyword = parse(text, wanted), many.store.keyword
    by_fts5 = lexical.find_best(keyword, query, 20).ranked
    assert by_fts5
    monkeypatch.setattr(lexical, "POSTINGS", 0)
    from_memory = lexical.find_best(keyword, query, 20).ranked
    assert [(chunk, pytest.approx(score)) for chunk, score in by_fts5] == from_memory


def test_words_asked_for_twice_give_the_same_hits_and_forget_what_was_deleted(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.md").write_text("heap memory " * (number + 1), encoding="utf-8")
    with qmd.open(tmp_path / "twice.sqlite") as index:
        index.add(folder, embed=False)
        first = index.search("heap memory")
        assert index.search("heap memory").hits == first.hits
        assert index.store.keyword.keeps(['"heap"', '"memory"'])
        (folder / "8.md").unlink()
        index.update()
        assert not index.store.keyword.keeps(['"heap"'])
        for _ in range(3):
            assert "8.md" not in paths(index.search("heap memory"))


def test_few_documents_with_many_passages_do_not_hide_the_others(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "long.md").write_text("".join(f"# Heap {i}\n\nheap heap {i}\n\n" for i in range(300)))
    for number in range(5):
        (folder / f"{number}.md").write_text(f"Note {number} names the heap once among other things.\n")
    with qmd.open(tmp_path / "deep.sqlite") as index:
        index.add(folder, embed=False)
        assert len(index.search("heap", limit=5)) == 5


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Notes with words of a Latin letter or a number and one character."""
    folder = tmp_path_factory.mktemp("mixed")
    notes = {
        "drive.md": "U盘 备份 数据",
        "turn.md": "U U U turn sign u 备份",
        "may.md": "5月的计划",
        "five.md": "5 5 5 things 5",
        "shirt.md": "买 T恤 两件",
    }
    for name, text in notes.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    with qmd.open(folder.parent / "mixed.sqlite") as opened:
        opened.add(folder, embed=False)
        yield opened


@pytest.mark.parametrize(
    ("query", "first", "all_of_them"),
    [
        ("U盘", "drive.md", None),
        ('"U盘"', "drive.md", ["drive.md"]),
        ("5月", "may.md", None),
        ('"5月"', "may.md", ["may.md"]),
        ("T恤", "shirt.md", ["shirt.md"]),
        ("备份 -U盘", "turn.md", ["turn.md"]),
        ("things -5月", "five.md", ["five.md"]),
    ],
)
def test_a_character_behind_a_letter_or_number_counts(mixed, query, first, all_of_them):
    found = paths(mixed.search(query))
    assert found[0] == first
    assert all_of_them in (None, found)


def test_a_character_that_stands_behind_no_such_word_changes_nothing(mixed):
    """A question may end in a particle: `Python吗`."""
    plain, asked = mixed.search("备份 turn"), mixed.search("备份 turn吗")
    assert [(hit.path, hit.score) for hit in plain] == [(hit.path, hit.score) for hit in asked]


def test_such_a_word_is_marked(mixed):
    (hit,) = mixed.search("T恤")
    assert "T恤" in [hit.snippet[a:b] for a, b in hit.marks]


def test_of_many_unknown_words_some_are_spelled_anew(index):
    asked = " ".join(f"permissi{letter}n" for letter in "abcdefghijklmnpqrstuvwxyz")
    assert len(index.search(asked).degraded) == lexical.MOST_RESPELLED
