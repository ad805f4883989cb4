import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qmd.search.query import Term, parse, parse_request, read_date
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


def test_a_field_without_a_value_of_its_kind_is_no_phrase_that_must_be_there():
    query = parse('"page fault" after:soon tag:#')
    assert query.required == (Term(("page", "fault"), quoted=True),)
    assert query.terms[1:] == (Term(("after", "soon")), Term(("tag",)))


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


# ---- lines
def test_plain_text_is_one_part():
    asked = parse_request("how do I\nallocate memory", Filter(path="a/*"))
    assert [part.kind for part in asked.parts] == ["plain"]
    assert asked.parts[0].query.plain == "how do I allocate memory"
    assert asked.filter.path == "a/*"
    assert not asked.typed


def test_lines_with_beginnings():
    asked = parse_request(
        'LEX: "heap size" -stack\nvec: how big is it\n\nhyde: It is 4 GB.\nintent: memory\nrest of it'
    )
    assert [(p.kind, p.query.plain) for p in asked.parts] == [
        ("lex", "heap size"),
        ("vec", "how big is it"),
        ("hyde", "It is 4 GB."),
        ("plain", "rest of it"),
    ]
    assert asked.intent == "memory"
    assert asked.parts[0].query.excluded[0].words == ("stack",)
    assert asked.plain == "rest of it"


def test_conditions_of_all_lines_meet():
    asked = parse_request(
        "lex: heap tag:c\nvec: memory path:work/*\nhyde: lang:en text", Filter(type="markdown")
    )
    for part in asked.parts:
        assert part.query.filter == Filter(tags=("c",), path="work/*", lang="en", type="markdown")


def test_expand_and_lone_intent():
    asked = parse_request("expand: heap")
    assert asked.expand
    assert [p.kind for p in asked.parts] == ["plain"]
    assert parse_request("intent: heap").parts[0].query.plain == "heap"
    assert parse_request("intent: a\nlex: b", intent="given").intent == "given"
    assert parse_request("lex:").parts[0].query.plain == ""


def test_words_with_a_colon_further_on_are_no_lines():
    assert [p.kind for p in parse_request("what does vec: mean").parts] == ["plain"]
    assert [p.kind for p in parse_request("first\nlex: second").parts] == ["plain"]


@given(st.text(alphabet='lexvchydintp: \n"-*a文', max_size=60))
def test_any_request_is_legal(text):
    asked = parse_request(text)
    assert asked.parts
    assert all(part.query.filter == asked.filter for part in asked.parts)


def test_words_are_folded_as_the_index_folds_them():
    assert parse("ＱＭＤ １００㎡ x²").terms == (Term(("QMD",)), Term(("100", "m2")), Term(("x2",)))
