"""What documents contain is text, whatever it looks like."""

# ruff: noqa: E501  documents and answers stand on their own lines
from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import expect

FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_hostile_documents_do_nothing(visit: Any) -> None:
    there = visit("#q=hostile&mode=keyword")
    page = there.page
    there.wait_hits()
    page.locator("#hit-0").click()
    expect(page.locator(".preview h2")).to_contain_text('<b>bold & "quoted"')
    expect(page.locator(".text")).to_contain_text("<script>window.pwned='script'</script>")
    page.locator("#tab-why").click()
    page.locator("#tab-doc").click()
    assert page.evaluate("window.pwned === undefined")
    assert (
        page.locator(
            "#found :is(a, img, script, iframe, style), #preview :is(a, img, script, iframe, style)"
        ).count()
        == 0
    )
    assert page.locator("script").count() == 1
    for part in ("#found", "#preview"):
        shown = page.locator(part).inner_text()
        assert not FORBIDDEN.search(shown)
        assert "evil.example\x07" not in shown
    assert "gnp.exe" in page.locator(".text").inner_text()
    assert page.locator("body").is_visible()


def test_hostile_names_can_be_linked_to(visit: Any) -> None:
    there = visit("#q=hostile&mode=keyword")
    there.wait_hits()
    there.page.locator("#hit-0").click()
    there.page.reload()
    expect(there.page.locator(".preview h2")).to_contain_text("<b>bold")
    assert there.page.evaluate("window.pwned === undefined")


def test_hostile_addresses_do_nothing(visit: Any) -> None:
    there = visit(
        "#q=%3Cimg%20src%3Dx%20onerror%3Dpwned%3D1%3E&in=%3Cscript%3E&mode=javascript:&lang=%22%3E&open=../../etc/passwd:1"
    )
    page = there.page
    there.expected += ["400", "404"]
    page.wait_for_timeout(600)
    assert page.evaluate("window.pwned === undefined")
    expect(page.locator(".chip").first).to_have_text("<script>")
    assert "root:" not in page.locator("body").inner_text()


def test_the_policy_stops_what_the_page_did_not_bring(visit: Any) -> None:
    there = visit()
    there.expected += ["Content Security Policy", "Refused", "violates", "Trusted"]
    page = there.page
    page.evaluate("""() => { const s = document.createElement('script'); s.setAttribute('x', '');
      try { s.textContent = 'window.pwned = 1'; document.body.append(s); } catch {} }""")
    page.evaluate(
        "() => { const i = document.createElement('img'); i.src = 'https://evil.example/x.png'; document.body.append(i); }"
    )
    page.evaluate(
        """() => { try { document.body.insertAdjacentHTML('beforeend', '<b id=pwned></b>'); } catch {} }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.pwned === undefined || window.pwned === null")
    assert page.locator("#pwned").count() == 0
    assert any("evil.example" in t for t in there.troubles)
    there.asked = [u for u in there.asked if "evil.example" not in u]


def test_answers_are_text_too(visit: Any) -> None:
    def hostile(route: Any) -> None:
        source = '{"number": 1, "docid": "x", "file": "qmd://odd/x.md", "title": "<img src=x onerror=pwned=1>", "line": 1, "end_line": 1, "text": ""}'
        route.fulfill(
            content_type="text/event-stream",
            body=f'event: sources\ndata: [{source}]\n\nevent: text\ndata: "<script>pwned=1</script> [1] [7] \\u202e"\n\n',
        )

    there = visit("#view=ask&q=anything", before=lambda page: page.route("**/ask", hostile))
    there.expected += ["404"]
    there.page.keyboard.press("Enter")
    said = there.page.locator("#said")
    expect(said).to_contain_text("<script>pwned=1</script>")
    expect(said).to_contain_text("[7]")
    assert said.locator("button").count() == 1
    assert "\u202e" not in said.inner_text()
    assert there.page.evaluate("window.pwned === undefined")
