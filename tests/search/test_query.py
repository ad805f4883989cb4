import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qmd.search.query import Term, parse, read_date
from qmd.types import Filter


def test_words_phrases_and_exclusions():
    query = parse('memory "page fault" -kernel -"hot path" alloc* e-mail')
    assert query.terms == (
        Term(("memory",)),
        Term(("page", "fault"), quoted=True),
        Term(("alloc",), prefix=True),
        Term(("e", "mail")),
    )
    assert query.excluded == (Term(("kernel",)), Term(("hot", "path"), quoted=True))
    assert query.plain == "memory page fault alloc e-mail"


def test_fields_become_conditions():
    query = parse(
        'plan path:notes/* tag:#work/now title:"year plan" lang:ZH type:markdown after:2024-5 before:2025'
    )
    assert query.filter == Filter(
        path="notes/*",
        tags=("work/now",),
        title="year plan",
        lang="zh",
        type="markdown",
        after="2024-05-01",
        before="2025-01-01",
    )
    assert query.plain == "plan"


def test_conditions_from_outside_are_kept_and_tags_add_up():
    query = parse("tag:b x", Filter(collections=("notes",), tags=("a",), after="2020-01-01"))
    assert query.filter == Filter(collections=("notes",), tags=("a", "b"), after="2020-01-01")


@pytest.mark.parametrize(
    "text, words",
    [
        ("--help", [("help",)]),
        ("a - b", [("a",), ("b",)]),
        ("title: plan", [("title",), ("plan",)]),
        ("before:lunch", [("before", "lunch")]),
        ("after:2024-13", [("after", "2024", "13")]),
        ('say "hello', [("say",), ("hello",)]),
        ("NEAR(a b) AND {x} ^y", [("NEAR", "a"), ("b",), ("AND",), ("x",), ("y",)]),
        ("如何设置文件权限", [("如何设置文件权限",)]),
        ("Ångström nai\u0308ve", [("Ångström",), ("naïve",)]),
        ("", []),
        ('"" - * ... -', []),
    ],
)
def test_what_is_no_operator_is_a_word(text, words):
    assert [term.words for term in parse(text).terms] == words


def test_dates():
    assert read_date("2024") == "2024-01-01"
    assert read_date("2024-02-30") is None
    assert read_date("yesterday") is None


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from('"-*:() ^{}+\0\ud800tagpath权'))))
@example('"' * 3 + "-" * 3)
@example("-" * 4000)
def test_any_string_parses(text):
    query = parse(text)
    assert all(term.words and all(term.words) for term in (*query.terms, *query.excluded))
