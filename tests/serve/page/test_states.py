"""States that are not the usual one: nothing indexed, nothing found, no server, busy, a token, indexing."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from playwright.sync_api import expect


def test_nothing_indexed_yet_says_how_to_begin(visit: Any, start_server: Any, empty_places: Any) -> None:
    there = visit(to=start_server(empty_places).url)
    expect(there.page.locator("h1")).to_have_text("Nothing is indexed yet")
    expect(there.page.locator(".command code")).to_have_text("qmd add ~/notes")


def test_nothing_found_offers_to_drop_the_filters(visit: Any) -> None:
    there = visit("#q=tomatoes&mode=keyword&tags=nonesuch")
    page = there.page
    expect(page.locator("h1")).to_have_text("Nothing found")
    page.get_by_role("button", name="Clear filters").click()
    there.wait_hits()
    assert page.locator(".chip").count() == 0
    assert "tags" not in page.url


def test_a_condition_that_is_wrong_is_told_in_the_words_of_the_server(visit: Any) -> None:
    there = visit("#q=tomatoes&in=nonesuch")
    there.expected += ["404"]
    expect(there.page.get_by_role("alert")).to_contain_text("nonesuch")


def test_what_the_server_said_stays_when_its_state_comes_later(visit: Any) -> None:
    there = visit("#q=tomatoes&in=nonesuch")
    there.expected += ["404"]
    page = there.page
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("nonesuch")
    page.route("**/status", lambda route: (time.sleep(0.5), route.continue_()))
    page.reload()
    expect(alert).to_contain_text("nonesuch")
    expect(page.locator("#status-word")).to_contain_text("8 documents")
    expect(alert).to_contain_text("nonesuch")
    page.locator("#lang").select_option("zh")
    expect(alert).to_contain_text("nonesuch")


def test_a_token_is_asked_for_and_kept_for_the_tab(visit: Any, start_server: Any, places: Any) -> None:
    there = visit("#q=soup&mode=keyword", to=start_server(places, token="s3cret-token").url)
    there.expected += ["401"]
    page = there.page
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("This server asks for a token")
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("does not accept")
    page.locator("#token").fill("s3cret-token")
    page.keyboard.press("Enter")
    there.wait_hits()
    expect(dialog).to_have_count(0)
    expect(page.locator("#status-word")).to_contain_text("8 documents")
    there.troubles.clear()
    page.reload()
    there.wait_hits()
    assert not there.troubles
    assert page.evaluate("localStorage.length + document.cookie.length") == 0
    assert "s3cret" not in page.url


def test_a_late_refusal_of_a_former_token_is_not_heard(visit: Any, start_server: Any, places: Any) -> None:
    held: list[Any] = []

    def hold(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer wrong":
            held.append(route)
        else:
            route.continue_()

    address = start_server(places, token="s3cret-token").url
    there = visit("#q=soup&mode=keyword", to=address, before=lambda page: page.route("**/status*", hold))
    there.expected += ["401"]
    page, dialog = there.page, there.page.get_by_role("dialog")
    for said, token in (("asks for a token", "wrong"), ("does not accept", "s3cret-token")):
        expect(dialog).to_contain_text(said)
        page.locator("#token").fill(token)
        page.keyboard.press("Enter")
    there.wait_hits()
    assert held
    for route in held:
        route.fulfill(status=401, json={"error": {"message": "no"}})
    assert page.evaluate("fetch('/health').then((answer) => answer.status)") == 200
    expect(dialog).to_have_count(0)


def test_a_server_that_went_away_is_told_and_comes_back(visit: Any, start_server: Any, places: Any) -> None:
    first = start_server(places)
    there = visit(to=first.url)
    there.expected += ["ERR_"]
    page = there.page
    expect(page.locator("#status-word")).to_contain_text("8 documents")
    first.stop()
    there.type("soup")
    expect(page.locator("#notices")).to_contain_text("The server does not answer")
    start_server(places, port=int(first.url.rpartition(":")[2]))
    page.get_by_role("button", name="Try again").click()
    there.wait_hits()
    expect(page.locator("#notices")).to_be_empty()


def test_a_busy_server_is_asked_again(visit: Any) -> None:
    refused = []

    def busy(route: Any) -> None:
        if refused:
            route.continue_()
            return
        refused.append(1)
        error = {"error": {"type": "Busy", "message": "full"}}
        route.fulfill(
            status=429, headers={"Retry-After": "1"}, content_type="application/json", body=json.dumps(error)
        )

    there = visit("#q=soup&mode=keyword", before=lambda page: page.route("**/query*", busy))
    there.expected += ["429"]
    expect(there.page.locator("#notices")).to_contain_text("trying again in 1 s")
    there.wait_hits()
    expect(there.page.locator("#notices")).to_be_empty()


def test_progress_of_indexing_is_shown_as_it_comes(visit: Any, server: Any) -> None:
    there = visit()
    page = there.page
    expect(page.locator("#status-word")).to_contain_text("8 documents")

    def publish(**data: Any) -> None:
        thread = threading.Thread(target=lambda: server.service.events.publish("index", **data))
        thread.start()
        thread.join()

    publish(collection="garden", stage="index", done=30, total=120)
    expect(page.locator("#status-word")).to_have_text("Indexing 25 %")
    expect(page.locator("#progress")).to_be_visible()
    publish(collection="garden", stage="embed", done=60, total=120)
    expect(page.locator("#status-word")).to_have_text("Making vectors 50 %")
    publish(stage="ready", embedded=120, remaining=0)
    expect(page.locator("#status-word")).to_contain_text("8 documents")
    expect(page.locator("#progress")).to_be_hidden()


def test_the_state_of_the_index_is_a_click_away(visit: Any) -> None:
    there = visit()
    page = there.page
    page.locator("#status").click()
    dialog = page.get_by_role("dialog")
    for text in ("garden", "kitchen", "Japanese", "index.sqlite"):
        expect(dialog).to_contain_text(text)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.locator("#status")).to_be_focused()
