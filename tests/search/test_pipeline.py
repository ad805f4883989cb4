"""What each stage of a search does, seen from the Python door."""

from __future__ import annotations

import os
import threading

import pytest

import qmd
from qmd.config import Config
from qmd.errors import UsageError
from qmd.search.budget import Budget, Clock, Costs
from qmd.search.fuse import blend
from qmd.store.cache import AnswerCache

from .conftest import LinesGenerator, PickReranker, WordsEmbedder

NOTES = {
    "heap.md": "# Heap\n\nHow to allocate memory on the heap with malloc.\n",
    "tomato.md": "# Tomatoes\n\nTomatoes rot when they are watered unevenly.\n",
    "python.md": "# Python\n\nThe python is a snake that swallows its prey.\n",
    "code.md": "# Language\n\nPython is a programming language with lists.\n",
}


def paths(hits):
    return [hit.path for hit in hits]


# ---- lists
def test_lines_say_what_is_looked_for_how(build):
    index = build(NOTES)
    hits = index.query("lex: malloc\nvec: tomatoes watered", explain=True)
    assert set(paths(hits)[:2]) == {"heap.md", "tomato.md"}
    by_path = {hit.path: hit.explain["lists"] for hit in hits}
    assert by_path["heap.md"]["keyword 1"]["weight"] == 2.0
    assert by_path["heap.md"]["keyword 1"]["rank"] == 1
    assert "keyword 1" not in by_path["tomato.md"]
    assert by_path["tomato.md"]["vector 2"]["rank"] == 1


def test_a_keyword_search_takes_the_lex_lines_only(build):
    index = build(NOTES)
    assert paths(index.search("lex: malloc\nvec: tomatoes")) == ["heap.md"]
    nothing = index.search("vec: tomatoes")
    assert not nothing
    assert nothing.degraded == ("keyword: no lex: line to look for",)


def test_a_condition_of_any_line_holds_for_all(build):
    index = build(NOTES)
    assert paths(index.query("lex: python path:code.md\nvec: snake prey")) == ["code.md"]


def test_hyde_is_embedded_as_a_passage(build):
    embedder = WordsEmbedder()
    index = build(NOTES, embedder=embedder)
    embedder.asked.clear()
    assert paths(index.query("hyde: Tomatoes rot when they are watered unevenly."))[0] == "tomato.md"
    assert embedder.asked == []


def test_intent_moves_the_vectors_and_is_not_searched_for(build):
    index = build(NOTES | {"code.md": "# Python lists\n\nA programming language with lists.\n"})
    assert paths(index.query("python", intent="snake prey swallows"))[0] == "python.md"
    assert paths(index.query("python", intent="programming lists"))[0] == "code.md"
    assert paths(index.query("python\n", intent="tomatoes", explain=True))[0] in ("python.md", "code.md")
    assert paths(index.search("lex: python\nintent: tomatoes"))[-1] != "tomato.md"


# ---- expansion
def test_the_model_writes_more_lists_and_what_drifts_is_dropped(build):
    model = LinesGenerator(
        "lex: heap memory malloc\nvec: tomatoes in the sun\nvec: how is memory allocated\n"
    )
    index = build(NOTES, expander=model)
    hits = index.query("memory allocate", explain=True)
    (expansion,) = hits[0].explain["expansion"]
    assert expansion["dropped"] == ["tomatoes in the sun"]
    assert {"expand 1 lex", "expand 2 vec"} <= hits[0].explain["lists"].keys()
    assert hits[0].explain["lists"]["expand 1 lex"]["weight"] == 0.5
    assert not expansion["cached"]
    again = index.query("memory allocate", explain=True)
    assert again[0].explain["expansion"][0]["cached"]
    assert len(model.prompts) == 1
    assert paths(again) == paths(hits)


def test_what_the_model_wrote_outlives_the_process(build, tmp_path):
    model = LinesGenerator("lex: heap memory\n")
    build(NOTES, expander=model).query("memory allocate")
    with qmd.open(
        tmp_path / "index.sqlite",
        config=Config(models=qmd.config.Models(expansion="lines")),
        embedder=WordsEmbedder(),
    ) as second:
        second._expander = LinesGenerator("lex: something else\n")
        assert second.query("memory allocate", explain=True)[0].explain["expansion"][0]["cached"]


def test_expansion_is_off_by_choice(build):
    model = LinesGenerator("lex: heap memory\n")
    index = build(NOTES, expander=model)
    index.query("memory allocate", expand=False)
    assert model.prompts == []


def test_a_sure_first_hit_needs_no_expansion_unless_asked(build):
    # BM25 rises with the number of passages that lack the word.
    notes = {f"{n}.md": f"# Note {n}\n\nAbout apples, pears and the number {n}.\n" for n in range(300)}
    notes["zebra.md"] = "# Zebra crossing\n\nThe zebra crosses.\n"
    model = LinesGenerator("lex: zebra stripes\n")
    index = build(notes, expander=model, embed=False)
    hits = index.query("zebra", explain=True)
    assert hits[0].path == "zebra.md"
    assert model.prompts == []
    index.query("zebra", expand=True)
    assert len(model.prompts) == 1
    index.query("expand: zebra crosses")
    assert len(model.prompts) == 2


def test_an_expansion_asked_for_without_a_model_is_said(build):
    assert any("models.expansion" in note for note in build(NOTES).query("heap", expand=True).degraded)


# ---- reranking
def test_the_reranker_reads_the_matched_chunk_and_its_scores_are_kept(build):
    long = "# Long\n\n" + "".join(f"## Part {n}\n\n{'filler ' * 150}{n}\n\n" for n in range(4))
    notes = {**NOTES, "long.md": long + "## Garden\n\nA python sleeps among WANTED melons.\n"}
    reranker = PickReranker("WANTED")
    index = build(notes, reranker=reranker)
    hits = index.query("python", explain=True)
    assert hits[0].path == "long.md"
    assert hits[0].explain["scores"]["reranked"] == pytest.approx(0.95)
    question, texts = reranker.batches[0]
    assert question == "python"
    assert any(text.startswith("Long\n") and "WANTED" in text for text in texts)
    index.query("python")
    assert len(reranker.batches) == 1
    index.query("python", rerank=False)
    assert len(reranker.batches) == 1
    index.query("python", intent="snakes")
    assert reranker.batches[1][0] == "python\nsnakes"


def test_candidate_limit_bounds_what_is_read_and_the_rest_stays_below(build):
    notes = {f"{n}.md": f"# Note {n}\n\nThe heap, told in way {n}.\n" for n in range(12)}
    reranker = PickReranker("way 3")
    index = build(notes, reranker=reranker)
    hits = index.query("heap told way", candidate_limit=4, limit=12, explain=True)
    assert len(reranker.batches[0][1]) == 4
    assert len(hits) == 12
    assert ["reranked" in hit.explain["scores"] for hit in hits] == [True] * 4 + [False] * 8
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_reranker_asked_for_and_not_there_is_said(build):
    assert any("models.reranker" in note for note in build(NOTES).query("heap", rerank=True).degraded)


def test_blend_keeps_both_in_one_scale():
    assert blend([0.5, 0.25], [0.0, 1.0], 0.5) == [0.5, 0.75]
    assert blend([], [], 0.5) == []


# ---- budget
def test_a_stage_known_to_be_slow_is_left_out_and_said(build):
    reranker = PickReranker("snake")
    index = build(NOTES, reranker=reranker)
    index._costs.record("rerank:", 400.0)
    hits = index.query("python", budget_ms=200)
    assert reranker.batches == []
    assert any(note.startswith("rerank: left out") for note in hits.degraded)
    assert index.query("python", budget_ms=0).degraded == ()
    assert index.query("python", budget_ms=200, rerank=True).degraded == ()


def test_fewer_candidates_where_the_time_allows_only_some(build):
    notes = {f"{n}.md": f"# Note {n}\n\nThe heap, told in way {n}.\n" for n in range(10)}
    reranker = PickReranker("way 3")
    index = build(notes, reranker=reranker)
    index._costs.record("rerank:", 1000.0)
    hits = index.query("heap told", budget_ms=6500)
    assert len(reranker.batches[0][1]) in (5, 6)
    assert any("of 10 candidates" in note for note in hits.degraded)


def test_vectors_are_left_out_where_even_they_are_too_slow(build):
    index = build(NOTES)
    index._costs.record("vector", 500.0)
    hits = index.query("heap", budget_ms=50)
    assert any(note.startswith("vector: left out") for note in hits.degraded)
    assert paths(hits) == ["heap.md"]


def test_an_estimate_that_keeps_a_stage_out_is_tried_again():
    costs = Costs()
    costs.record("slow", 100.0)
    budget = Budget(50.0, costs, Clock())
    tries = 0
    while budget.refuses("slow"):
        tries += 1
        budget = Budget(50.0, costs, Clock())
        assert tries < 20
    assert tries >= 5


def test_costs_are_kept_in_a_small_file(tmp_path):
    file = tmp_path / "index.costs.json"
    costs = Costs(file)
    costs.record("vector", 12.0)
    costs.save()
    assert Costs(file).estimate("vector") == 12.0
    changed = file.stat().st_mtime_ns
    costs.record("vector", 12.1)
    costs.save()
    assert file.stat().st_mtime_ns == changed
    file.write_text("not json")
    assert Costs(file).estimate("vector") is None


# ---- one answer
def test_near_copies_are_folded_and_named(build):
    text = "# Move\n\nThe heap is where memory is allocated by malloc, freed by free, and leaked by everyone else.\n"
    notes = {"a.md": text, "copy/a.md": text, "b.md": "# Other\n\nThe heap again, with nothing in common.\n"}
    index = build(notes)
    hits = index.search("heap")
    assert len(hits) == 2
    (folded,) = [hit for hit in hits if hit.duplicates]
    assert {folded.file, folded.duplicates[0].rsplit(":", 1)[0]} == {
        "qmd://notes/a.md",
        "qmd://notes/copy/a.md",
    }
    assert len(index.search("heap", all=True)) == 3
    assert len(index.search("heap", all_chunks=True)) == 3


def test_passages_that_differ_in_a_number_are_no_copies(build):
    line = "Paid the invoice of the joiner for the kitchen table and two chairs in the hall, number {}.\n"
    index = build({f"{n}.md": line.format(n) for n in range(5)})
    assert len(index.search("invoice")) == 5


def test_copies_do_not_take_the_places_of_others(build):
    copy = "The heap of leaves in the yard waits for the wind to take it away over the wall.\n"
    notes = {f"copy{n:03}.md": copy for n in range(120)}
    notes |= {
        f"own{n}.md": f"Once upon a time in another place, far from any yard, wall or wind, a heap was named, {n}.\n"
        for n in range(4)
    }
    index = build(notes, embed=False)
    hits = index.search("heap leaves yard", limit=5)
    assert len(hits) == 5
    assert sum(bool(hit.duplicates) for hit in hits) == 1
    assert {hit.path for hit in hits} >= {f"own{n}.md" for n in range(4)}


def test_all_chunks_gives_every_passage(build):
    parts = "".join(f"## Part {n}\n\n{'filler ' * 150} heap {n}\n\n" for n in range(4))
    index = build({"long.md": f"# Long\n\n{parts}"})
    assert len(index.query("heap")) == 1
    hits = index.query("heap", all_chunks=True)
    assert len(hits) == 4
    assert len({hit.line for hit in hits}) == 4


def test_boosts_and_recency_change_the_order(build):
    notes = {"old.md": "---\ndate: 2001-01-01\n---\nThe heap is told here.\n"}
    notes["new.md"] = "---\ndate: 2099-01-01\n---\nThe heap is told there, and at greater length, to lose.\n"
    notes |= {f"other{n}.md": f"Nothing of that kind, {n}.\n" for n in range(9)}
    index = build(notes)
    assert paths(index.search("heap told"))[0] == "old.md"
    hits = index.search("heap told", recency=5.0, explain=True)
    assert paths(hits) == ["new.md", "old.md"]
    assert hits[0].explain["scores"]["boost"] == pytest.approx(6.0)
    assert 0 < hits[1].score <= hits[0].score <= 1


def test_a_boosted_collection_comes_first(build, tmp_path):
    index = build(NOTES)
    other = tmp_path / "other"
    other.mkdir()
    (other / "heap.md").write_text("# Heaps elsewhere\n\nA heap, too.\n")
    index.add(other, name="other")
    plain = index.query("heap allocate memory")
    assert plain[0].collection == "notes"
    assert index.query("heap allocate memory", boosts={"other": 4.0})[0].collection == "other"
    with pytest.raises(UsageError, match="0 or more"):
        index.query("heap", boosts={"other": -1.0})


# ---- files
def test_hits_of_changed_and_deleted_files_are_marked(build, tmp_path):
    index = build(NOTES)
    assert {hit.stale for hit in index.query("python heap tomatoes")} == {None}
    (tmp_path / "notes" / "heap.md").write_text("# Heap\n\nNow about stacks.\n")
    os.remove(tmp_path / "notes" / "tomato.md")
    stale = {hit.path: hit.stale for hit in index.query("python heap tomatoes")}
    assert stale["heap.md"] == "changed"
    assert stale["tomato.md"] == "gone"
    assert stale["python.md"] is None


def test_reread_answers_from_the_files_as_they_are(build, tmp_path):
    index = build(NOTES)
    (tmp_path / "notes" / "heap.md").write_text("# Heap\n\nmalloc was replaced by an arena.\n")
    os.remove(tmp_path / "notes" / "tomato.md")
    hits = index.query("malloc tomatoes", reread=True)
    by_path = {hit.path: hit for hit in hits}
    assert "tomato.md" not in by_path
    assert "arena" in by_path["heap.md"].snippet
    assert {hit.stale for hit in hits} == {None}
    assert not any("no vector" in note for note in hits.degraded)


def test_a_name_that_is_not_utf8_is_not_called_gone(build, tmp_path):
    index = build(NOTES)
    with open(os.fsencode(tmp_path / "notes") + b"/caf\xe9.md", "wb") as file:
        file.write(b"# Coffee\n\nAn unreadable name.\n")
    index.update()
    (hit,) = index.search("unreadable")
    assert hit.stale is None


# ---- citations
def test_every_hit_can_be_cited(build, tmp_path):
    text = "# Bread\n\n## Rise\n\nFirst a line.\nThe dough rises slowly. It is kept cold.\n"
    index = build({"bread.md": text})
    (hit,) = index.search("dough cold")
    lines = text.split("\n")
    assert hit.snippet.split("\n") == lines[hit.line - 1 : hit.end_line]
    assert hit.quote in text
    assert "dough" in hit.quote
    for start, end in hit.marks:
        assert hit.snippet[start:end].lower() in ("dough", "cold")


def test_citations_off(build):
    index = build(NOTES, config={"memory": {"citations": "off"}})
    assert index.search("malloc")[0].quote is None
    assert {hit.quote for hit in index.similar(index.ls()[0].file)} == {None}


# ---- scores
def test_min_score_means_the_score_that_is_shown(build):
    index = build(NOTES)
    every = index.query("python snake heap", limit=10)
    cut = every[1].score
    assert paths(index.query("python snake heap", min_score=cut)) == [h.path for h in every if h.score >= cut]
    assert [h.score for h in every] == sorted((h.score for h in every), reverse=True)


# ---- what is remembered
def test_the_cache_is_only_a_cache(tmp_path):
    cache = AnswerCache(tmp_path / "index.answers")
    assert cache.scores("m", "q", ["a"]) == [None]
    assert not cache.path.exists()
    cache.put_scores("m", "q", ["a", "b"], [0.25, 0.5])
    assert AnswerCache(cache.path).scores("m", "q", ["b", "c", "a"]) == [0.5, None, 0.25]
    assert cache.scores("other", "q", ["a"]) == [None]
    cache.close()
    (tmp_path / "broken.answers").write_bytes(b"rubbish" * 1000)
    broken = AnswerCache(tmp_path / "broken.answers")
    assert broken.scores("m", "q", ["a"]) == [None]
    broken.put_scores("m", "q", ["a"], [0.5])
    assert broken.text("k", "q") is None


def test_the_cache_serves_several_threads(tmp_path):
    cache = AnswerCache(tmp_path / "index.answers")
    wrong: list[object] = []

    def work(number: int) -> None:
        for step in range(20):
            cache.put_scores("m", "q", [f"{number}/{step}"], [step / 20])
            if cache.scores("m", "q", [f"{number}/{step}"]) != [step / 20]:
                wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_neighbours_of_the_best_document_count_for_long_questions_alone(build, monkeypatch):
    from qmd.search import expand

    dough = "salt oil warm oven crust crumb"
    question = "how long must bread dough rest before baking at home"
    index = build(
        {
            "best.md": f"{question}: yeast flour {dough}",
            "twin.md": f"yeast flour bread {dough} resting",
            "near.md": f"bread, and the levain meal {dough}",
            "far.md": "bread, and an engine with piston valve wheel gear brake",
        },
        embedder=WordsEmbedder({"levain": "yeast", "meal": "flour"}),
    )

    def lead(asked: str, documents: int) -> float:
        monkeypatch.setattr(expand, "NEIGHBOUR_DOCUMENTS", documents)
        scores = {hit.path: hit.explain["scores"]["fused"] for hit in index.query(asked, explain=True)}
        return scores["near.md"] - scores["far.md"]

    assert lead(question, 1) > lead(question, 0) + 0.01
    short = "bread dough rest"
    assert lead(short, 1) == lead(short, 0)
