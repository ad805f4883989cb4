"""Finding, filtering and reading, with hand and keyboard."""

# ruff: noqa: E501  documents and answers stand on their own lines
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect


def band(page: Any) -> list[int]:
    """The numbers of the lines that are shown as the place of the hit."""
    return [int(n) for n in page.locator(".ln.in > i").all_inner_texts()]


def test_typing_finds_and_shows_the_match_at_its_lines(visit: Any, places: Any) -> None:
    there = visit()
    page = there.page
    expect(page.locator("#q")).to_be_focused()
    with page.expect_response(
        lambda r: "/query" in r.url and r.request.post_data_json["query"] == "wet leaves"
    ) as got:
        page.keyboard.type("wet leaves")
    there.wait_hits()
    hit = got.value.json()["hits"][0]
    assert there.titles[0] == "Tomatoes on the balcony"
    expect(page.locator("#hit-0 mark").first).to_have_text(re.compile("wet|leaves", re.I))
    expect(page.locator(".ln.in mark").first).to_be_in_viewport()
    assert band(page) == list(range(hit["line"], hit["end_line"] + 1))
    file = Path(places.data_dir).parent / "garden" / "tomatoes.md"
    lines = file.read_text(encoding="utf-8").split("\n")
    shown = page.locator(".ln > p").all_inner_texts()
    assert shown[: len(lines) - 1] == lines[:-1]
    marked = {int(n) for n in page.locator(".ln:has(mark) > i").all_inner_texts()}
    assert marked == {
        n for n, line in enumerate(lines, start=1) if re.search(r"\b(wet|leaves)\b", line, re.I)
    }
    expect(page.locator(".crumbs").first).to_contain_text("garden/tomatoes.md")
    expect(page.locator(".crumbs").first).to_contain_text("Watering")


def test_a_match_deep_in_a_long_document_is_in_view_and_the_rest_can_be_reached(visit: Any) -> None:
    there = visit("#q=xylophone&mode=keyword")
    page = there.page
    there.wait_titles("Almanac")
    row = page.locator("#L702")
    expect(row.locator("mark")).to_have_text("xylophone")
    expect(row).to_be_in_viewport()
    expect(page.locator("#L1")).to_have_count(0)
    page.locator(".edge").first.click()
    expect(page.locator("#L120")).to_have_count(1)
    expect(page.locator("#L702 mark")).to_have_count(1)


def test_only_the_last_of_quick_letters_counts(visit: Any) -> None:
    there = visit()
    # all letters in one go, so that no pause of a busy machine looks like one of the person
    there.page.evaluate(
        """word => { for (let n = 1; n <= word.length; n++) {
            q.value = word.slice(0, n); q.dispatchEvent(new InputEvent("input")); } }""",
        "zucchini",
    )
    there.wait_hits()
    assert there.titles[0] == "Zucchini"
    assert len([u for u in there.asked if "/query" in u]) == 1


def test_a_late_answer_to_an_older_question_is_dropped(visit: Any) -> None:
    held = []

    def hold(route: Any) -> None:
        if route.request.post_data_json["query"] == "soup":
            held.append(route)
        else:
            route.continue_()

    there = visit(before=lambda page: page.route("**/query*", hold))
    there.type("soup")
    there.page.wait_for_timeout(300)
    there.type("zucchini")
    there.wait_hits()
    assert held
    held[0].continue_()
    there.page.wait_for_timeout(200)
    assert there.titles[0] == "Zucchini"


def test_composing_with_an_input_method_searches_only_at_its_end(visit: Any) -> None:
    there = visit()
    page = there.page
    page.evaluate("""() => { const q = document.getElementById('q');
      q.dispatchEvent(new CompositionEvent('compositionstart')); q.value = 'fan';
      q.dispatchEvent(new InputEvent('input', {isComposing: true})); }""")
    page.wait_for_timeout(300)
    assert not [u for u in there.asked if "/query" in u]
    page.evaluate("""() => { const q = document.getElementById('q'); q.value = '番茄';
      q.dispatchEvent(new CompositionEvent('compositionend')); }""")
    there.wait_hits()
    assert there.titles[0] == "番茄炒蛋"
    assert page.locator("#hit-0 .snippet").get_attribute("lang") == "zh"


def test_filters_narrow_and_stand_in_the_address(visit: Any) -> None:
    there = visit("#q=tomatoes&mode=keyword")
    page = there.page
    there.wait_hits()
    assert len(there.titles) == 4
    page.locator("#filters").click()
    page.locator("#collections").get_by_label("kitchen").check()
    expect(page.locator("#hits h3")).to_have_count(2)
    page.locator("#type").select_option("code")
    expect(page.locator("#hits h3")).to_have_count(1)
    assert "in=kitchen" in page.url
    assert "type=code" in page.url
    page.locator(".chip", has_text="kitchen").click()
    page.locator(".chip", has_text="code").click()
    expect(page.locator("#hits h3")).to_have_count(4)
    page.locator("#tags").fill("balcony")
    there.wait_titles("Tomatoes on the balcony")
    page.locator("#tags").fill("")
    page.locator("#before").fill("2025-01-01")
    there.wait_titles("Zucchini")
    page.locator("#before").fill("")
    page.locator("#path").fill("tom*")
    there.wait_titles("Tomatoes on the balcony")
    page.reload()
    there.wait_titles("Tomatoes on the balcony")
    assert page.locator(".chip").count() == 1


@pytest.mark.parametrize("mode, way", [("keyword", "Keyword"), ("vector", "Meaning")])
def test_the_mode_is_asked_for(visit: Any, mode: str, way: str) -> None:
    there = visit("#q=tomatoes")
    there.wait_hits()
    with there.page.expect_request("**/query*") as asked:
        there.page.get_by_role("radio", name=way).click()
    assert asked.value.post_data_json["mode"] == mode
    there.wait_hits()
    expect(there.page.get_by_role("radio", name=way)).to_be_checked()


def test_the_language_of_a_document_is_a_filter(visit: Any) -> None:
    there = visit("#q=保存&mode=keyword&lang=ja")
    there.wait_titles("トマトの保存")


def test_why_this_hit_shows_lists_ranks_and_times(visit: Any) -> None:
    there = visit("#q=watering+tomatoes")
    page = there.page
    there.wait_hits()
    page.locator("#tab-why").click()
    why = page.locator(".why")
    expect(why).to_contain_text("Found by keyword (rank")
    expect(why.locator("th", has_text="Rank")).to_be_visible()
    expect(why.locator(".words span").first).to_be_visible()
    expect(why).to_contain_text("fuse")
    expect(why).to_contain_text("together")


def test_all_of_it_by_keyboard(visit: Any) -> None:
    there = visit("#q=tomatoes&mode=keyword")
    page = there.page
    there.wait_hits()
    q = page.locator("#q")
    expect(q).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#hit-1")).to_have_attribute("aria-selected", "true")
    assert q.get_attribute("aria-activedescendant") == "hit-1"
    second = page.locator("#hit-1 h3").inner_text()
    expect(page.locator(".preview h2")).to_have_text(second)
    page.keyboard.press("Enter")
    expect(page.locator("#pane")).to_be_focused()
    page.keyboard.press("n")
    expect(page.locator("mark.now")).to_have_count(1)
    page.keyboard.press("w")
    expect(page.locator(".why")).to_be_visible()
    page.keyboard.press("w")
    page.keyboard.press("k")
    expect(page.locator("#hit-0")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Keyboard shortcuts")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("/")
    expect(q).to_be_focused()
    page.keyboard.press("Escape")
    expect(q).to_have_value("")
    expect(page.locator("h1")).to_contain_text("Search 8 documents")


def test_letters_in_the_field_are_letters(visit: Any) -> None:
    there = visit()
    there.page.keyboard.type("wn?tc/")
    expect(there.page.locator("#q")).to_have_value("wn?tc/")
    expect(there.page.get_by_role("dialog")).to_have_count(0)


def test_a_link_leads_back_to_the_same_place(visit: Any, server: Any) -> None:
    there = visit("#q=tomatoes&mode=keyword", permissions=["clipboard-read", "clipboard-write"])
    page = there.page
    there.wait_hits()
    page.locator("#hit-2").click()
    title = page.locator("#hit-2 h3").inner_text()
    page.locator(".preview").get_by_role("button", name="Copy link").click()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"{server.url}/#")
    again = visit(link.removeprefix(f"{server.url}/"))
    expect(again.page.locator(".preview h2")).to_have_text(title)
    expect(again.page.locator("#hit-2")).to_have_attribute("aria-selected", "true")


def test_a_link_to_a_document_alone_opens_it(visit: Any) -> None:
    there = visit("#open=kitchen/番茄炒蛋.md:3")
    expect(there.page.locator(".ln.in > p")).to_have_text("先炒鸡蛋，再炒番茄，最后放盐。")


def test_notes_of_a_degraded_search_are_shown(visit: Any) -> None:
    there = visit("#q=xylophnoe&mode=keyword")
    there.wait_hits()
    expect(there.page.get_by_role("note")).to_have_text(
        "“xylophnoe” stands in no document; searched for xylophon."
    )
    for language, told in (
        ("zh", "没有文档包含“xylophnoe”，改为搜索 xylophon。"),
        ("ja", "「xylophnoe」を含む文書はありません。"),
    ):
        there.page.locator("#lang").select_option(language)
        expect(there.page.get_by_role("note")).to_contain_text(told)


def test_every_code_of_a_note_has_words_on_the_page() -> None:
    from qmd.serve.http.notes import _FORMS
    from qmd.serve.page import read_page

    tables = re.findall(r"notes_: \{(.+)\},$", read_page().content.decode(), re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert set(re.findall(r'"([a-z-]+)": "', table)) == set(_FORMS)


def test_tags_can_be_picked(visit: Any) -> None:
    there = visit("#q=tomatoes&mode=keyword")
    there.wait_hits()
    page = there.page
    page.locator("#filters").click()
    picks = page.locator("#tag-picks .pick")
    expect(picks).to_have_text(["garden2", "balcony1"])
    picks.get_by_label("balcony").check()
    there.wait_titles("Tomatoes on the balcony")
    expect(page.locator("#tags")).to_have_value("balcony")
    picks.get_by_label("garden").check()
    assert "tags=balcony%2C+garden" in page.url
    picks.get_by_label("balcony").uncheck()
    expect(page.locator("#hits h3")).to_have_count(2)


def test_a_hit_in_a_vault_opens_in_obsidian(visit: Any, places: Any) -> None:
    vault = Path(places.data_dir).parent / "garden" / ".obsidian"
    vault.mkdir()
    try:
        there = visit("#q=zucchini&mode=keyword")
        there.wait_hits()
        link = there.page.get_by_role("link", name="Open in Obsidian")
        expect(link).to_have_attribute("href", "obsidian://open?vault=garden&file=zucchini")
    finally:
        vault.rmdir()


def test_no_other_address_becomes_a_link(visit: Any) -> None:
    def route(there: Any) -> None:
        hit = {"score": 0.9, "line": 1, "end_line": 1, "collection": "garden", "path": "zucchini.md", "marks": [],
               "file": "qmd://garden/zucchini.md", "docid": "a", "title": "T", "link": "javascript:alert(1)"}  # fmt: skip
        body = {"hits": [hit], "degraded": [], "notes": [], "timings_ms": {}}
        there.route("**/query*", lambda r: r.fulfill(body=json.dumps(body), content_type="application/json"))

    there = visit("#q=bed", before=route)
    expect(there.page.locator(".preview h2")).to_have_text("T")
    assert there.page.locator(".preview a").count() == 0


def test_indexed_images_stand_in_a_grid_and_are_shown(visit: Any, pictured: Any) -> None:
    there = visit("#q=tram", to=pictured.url)
    page = there.page
    there.wait_hits()
    image = page.locator(".grid img").first
    expect(image).to_have_js_property("naturalWidth", 144)
    assert image.get_attribute("alt") == "IMG 0417"
    expect(page.locator("figure.picture img")).to_be_visible()
    expect(page.locator(".ln.in")).to_have_count(0)
    docid = pictured.service.index.store.find_document("album", "IMG_0417.png").docid
    assert [u for u in there.asked if u.endswith(f"/raw/{docid}")]
    page.locator(".grid .hit").first.click()
    expect(page.locator("figure.picture img")).to_have_js_property("naturalWidth", 144)
    expect(page.locator("#pane")).to_contain_text("PNG picture, 144 x 144 pixels")
    there.type("type:image cat")
    expect(page.locator(".grid .hit h3").first).to_have_text("IMG 0388")


def test_an_indexed_image_is_shown_to_those_who_have_the_token(
    visit: Any, pictured: Any, start_server: Any
) -> None:
    there = visit("#q=tram", to=start_server(pictured.service.places, token="s3cret-token").url)
    there.expected += ["401"]
    there.page.locator("#token").fill("s3cret-token")
    there.page.keyboard.press("Enter")
    there.wait_hits()
    image = there.page.locator(".grid img").first
    expect(image).to_have_js_property("naturalWidth", 144)
    assert image.get_attribute("src").startswith("blob:")


def test_hits_carry_their_marks(visit: Any) -> None:
    hit = {"score": 0.9, "line": 1, "end_line": 1, "collection": "garden", "heading_path": [], "marks": []}
    hits = [
        hit | {"docid": "aaa111", "path": "tomatoes.md", "file": "qmd://garden/tomatoes.md", "title": "Text", "snippet": "old", "stale": "changed"},
    ]  # fmt: skip
    body = {"hits": hits, "degraded": [], "timings_ms": {}, "nothing_relevant": True}

    def before(page: Any) -> None:
        page.route("**/query*", lambda r: r.fulfill(body=json.dumps(body), content_type="application/json"))

    there = visit("#q=bed", before=before)
    there.wait_hits()
    expect(there.page.locator(".badge").first).to_have_text("changed since it was indexed")
    expect(there.page.locator(".verdict")).to_contain_text("Nothing relevant here")
