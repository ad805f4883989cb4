"""Colours, languages, sizes, and what assistive technology is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}

CHECKS = Path(__file__).with_name("checks.js").read_text(encoding="utf-8")


def found(page: Any, check: str) -> Any:
    """What one of checks.js objects to."""
    return page.evaluate(f"() => {{ {CHECKS} return checks.{check}; }}")


def check(page: Any) -> None:
    for one in ("nameless()", "poorContrast()", "brokenReferences()", "repeatedIds()"):
        assert found(page, one) == [], one


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_and_contrast_in_every_view(visit: Any, scheme: str) -> None:
    there = visit(color_scheme=scheme)
    page = there.page
    expect(page.locator(".rows").first).to_be_visible()
    check(page)
    there.type("watering tomatos")
    there.wait_hits()
    expect(page.locator(".ln.in").first).to_be_visible()
    page.locator("#filters").click()
    page.locator("#tags").fill("garden")
    page.wait_for_timeout(400)
    there.wait_hits()
    check(page)
    page.locator("#tab-why").click()
    check(page)
    page.locator("#status").click()
    expect(page.locator("dialog .facts")).to_be_visible()
    assert found(page, "nameless()") == []
    page.keyboard.press("Escape")
    page.get_by_role("radio", name="Ask").click()
    there.type("when to water the tomatoes")
    page.keyboard.press("Enter")
    expect(page.locator(".foot")).to_contain_text("Written by")
    check(page)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    shade = sum(map(int, re.findall(r"\d+", background)[:3]))
    assert (shade < 150) == (scheme == "dark")


def test_the_toggle_wins_over_the_system_and_is_kept(visit: Any) -> None:
    there = visit(color_scheme="light")
    page = there.page
    page.locator("#theme").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.locator("#theme").click()
    page.locator("#theme").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    page.emulate_media(color_scheme="dark")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_tab_goes_through_the_page_in_reading_order_with_a_visible_ring(visit: Any) -> None:
    there = visit("#q=tomatoes&mode=keyword")
    page = there.page
    there.wait_hits()
    order = [
        "clear",
        "status",
        "lang",
        "theme",
        "help",
        "Search",
        "Keyword",
        "filters",
        "found",
        "Copy",
        "tab-doc",
        "Previous",
        "Next",
        "pane",
    ]
    now = "[document.activeElement.id, document.activeElement.innerText, document.activeElement.ariaLabel]"
    for wanted in order:
        page.keyboard.press("Tab")
        if wanted == "found":
            # a scrolling list may take the focus by itself: the results are reached by arrows from the field
            if "found" not in str(page.evaluate(now)):
                wanted = "Copy"
                assert wanted in str(page.evaluate(now))
                order.remove("Copy")
            continue
        assert wanted in str(page.evaluate(now)), page.evaluate(now)
        ring = page.evaluate(
            "getComputedStyle(document.activeElement.closest('.lang') ?? document.activeElement).outlineStyle"
        )
        assert ring == "solid", wanted


@pytest.mark.parametrize(
    "locale, code, search, count, none",
    [
        ("en-GB", "en", "Search", "4 documents", "Nothing found"),
        ("zh-CN", "zh-Hans", "搜索", "4 篇文档", "没有找到"),
        ("ja-JP", "ja", "検索", "4 件", "見つかりません"),
        ("de-DE", "en", "Search", "4 documents", "Nothing found"),
    ],
)
def test_the_language_of_the_reader(
    visit: Any, locale: str, code: str, search: str, count: str, none: str
) -> None:
    there = visit("#q=tomatoes&mode=keyword", locale=locale)
    page = there.page
    there.wait_hits()
    expect(page.locator("html")).to_have_attribute("lang", code)
    expect(page.get_by_role("radio", name=search, exact=True)).to_be_checked()
    expect(page.locator("#tally")).to_contain_text(count)
    assert found(page, "nameless()") == []
    there.type("zzzqqq")
    expect(page.locator("h1")).to_have_text(none)


def test_the_language_can_be_chosen_and_is_kept(visit: Any) -> None:
    there = visit("#q=番茄&mode=keyword")
    page = there.page
    there.wait_hits()
    page.locator("#lang").select_option("ja")
    expect(page.locator("#tab-doc")).to_have_text("文書")
    page.reload()
    expect(page.locator("#q")).to_have_attribute("placeholder", "文書を検索")


def test_on_a_phone_results_fill_the_page_and_a_document_opens_over_them(visit: Any) -> None:
    there = visit("#q=tomatoes&mode=keyword", **PHONE)
    page = there.page
    there.wait_hits()
    expect(page.locator(".preview")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#hit-0").tap()
    expect(page.locator(".ln.in").first).to_be_in_viewport()
    assert page.evaluate("document.querySelector('.preview').getBoundingClientRect().width") == 390
    assert page.evaluate("document.querySelector('.text').scrollWidth") <= 390
    assert found(page, "lowTargets(34)") == []
    page.get_by_role("button", name="Back to the results").tap()
    expect(page.locator(".preview")).to_be_hidden()
    page.locator("#hit-1").tap()
    expect(page.locator(".preview")).to_be_visible()
    page.go_back()
    expect(page.locator(".preview")).to_be_hidden()
    there.wait_hits()
    page.locator("#filters").tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_nothing_is_cut_off_when_text_is_twice_as_large(visit: Any) -> None:
    there = visit("#q=tomatoes&mode=keyword", viewport={"width": 640, "height": 400})
    there.wait_hits()
    assert there.page.evaluate("document.documentElement.scrollWidth") <= 640


def test_results_are_announced(visit: Any) -> None:
    there = visit()
    there.type("soup")
    expect(there.page.locator("#live")).to_contain_text(re.compile(r"\d+ documents?\. Soup"))
