"""Asking: an answer as it is written, citations that lead to their passages."""

# ruff: noqa: E501  documents and answers stand on their own lines
from __future__ import annotations

from typing import Any

from playwright.sync_api import expect


def test_an_answer_streams_and_its_citation_opens_the_passage(visit: Any) -> None:
    there = visit("#view=ask")
    page = there.page
    page.keyboard.type("when should I water the tomatoes?")
    page.keyboard.press("Enter")
    said = page.locator("#said")
    expect(said).to_contain_text("Water the tomatoes in the morning")
    expect(page.locator(".sources .hit").first).to_be_visible()
    expect(page.locator(".foot")).to_contain_text("Written by scribe")
    expect(said.locator(".loose")).to_have_text("Elephants like jazz.")
    cite = said.locator(".cite").first
    number = cite.inner_text()
    cite.click()
    expect(page.locator(f'.sources .hit[data-source="{number}"]')).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".preview h2")).to_have_text("Tomatoes on the balcony")
    expect(page.locator(".ln.in", has_text="in the morning, at the root")).to_be_in_viewport()


def test_nothing_known_is_said_so(visit: Any) -> None:
    there = visit("#view=ask&q=tomatoes&tags=nonesuch")
    there.page.keyboard.press("Enter")
    expect(there.page.locator("#said")).to_have_text("Your documents say nothing about this.")
    assert there.page.locator(".sources").count() == 0


def test_filters_hold_for_questions(visit: Any) -> None:
    there = visit("#view=ask&q=tomatoes&in=kitchen&tags=%23red")
    with there.page.expect_request("**/ask") as asked:
        there.page.keyboard.press("Enter")
    assert asked.value.post_data_json["collections"] == ["kitchen"]
    assert asked.value.post_data_json["tags"] == ["red"]
    expect(there.page.locator("#said")).not_to_be_empty()


def test_an_answer_can_be_stopped(visit: Any) -> None:
    there = visit("#view=ask&q=tomatoes", before=lambda page: page.route("**/ask", lambda route: None))
    there.page.keyboard.press("Enter")
    there.page.get_by_role("button", name="Stop").click()
    expect(there.page.locator(".foot")).to_contain_text("Stopped.")


def test_an_error_in_the_middle_is_told(visit: Any) -> None:
    def failing(route: Any) -> None:
        body = 'event: text\ndata: "Well"\n\nevent: error\ndata: {"type": "ModelError", "message": "the model is gone. Run `qmd models`."}\n\n'
        route.fulfill(content_type="text/event-stream", body=body)

    there = visit("#view=ask&q=tomatoes", before=lambda page: page.route("**/ask", failing))
    there.page.keyboard.press("Enter")
    expect(there.page.get_by_role("alert")).to_contain_text("the model is gone")


def test_questions_follow_each_other(visit: Any) -> None:
    there = visit("#view=ask&q=when+should+I+water+the+tomatoes%3F")
    page = there.page
    page.keyboard.press("Enter")
    expect(page.locator(".foot")).to_contain_text("Written by scribe")
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.type("and the zucchini?")  # the field was selected: typing replaces the question
    with page.expect_request("**/ask") as asked:
        page.keyboard.press("Enter")
    told = asked.value.post_data_json
    assert told["question"] == "and the zucchini?"
    assert [question for question, _ in told["history"]] == ["when should I water the tomatoes?"]
    assert "in the morning" in told["history"][0][1]
    expect(page.locator(".asked")).to_have_text("and the zucchini?")
    expect(page.locator(".foot")).to_contain_text("Written by scribe")
    earlier = page.locator(".earlier details")
    expect(earlier).to_have_count(1)
    expect(earlier.locator(".said")).to_be_hidden()
    earlier.locator("summary").click()
    earlier.locator(".cite").first.click()
    expect(page.locator(".preview h2")).to_have_text("Tomatoes on the balcony")
    expect(page.locator('.sources .hit[aria-pressed="true"]')).to_have_count(0)
    with page.expect_request("**/ask") as again:
        page.get_by_role("button", name="Ask again").click()
    assert again.value.post_data_json == told
    expect(page.locator(".foot")).to_contain_text("Written by scribe")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#q")).to_have_value("")
    expect(page.get_by_role("heading", name="Ask a question")).to_be_visible()
    page.keyboard.type("tomatoes")
    with page.expect_request("**/ask") as fresh:
        page.keyboard.press("Enter")
    assert "history" not in fresh.value.post_data_json
