"""The file itself, and the policy that goes with it. These need no browser."""

from __future__ import annotations

import base64
import hashlib
import re

from qmd.serve.page import read_page
from qmd.serve.page.file import policy_for

TEXT = read_page().content.decode()
SCRIPT = re.search(r"<script>(.*?)</script>", TEXT, re.DOTALL)[1]  # type: ignore[index]


def test_the_policy_names_the_hashes_of_what_is_in_the_file() -> None:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in read_page().policy
    assert "unsafe" not in read_page().policy
    assert "default-src 'none'" in read_page().policy
    assert policy_for(b"<script>a</script><style>b</style>") != policy_for(
        b"<script>c</script><style>b</style>"
    )


def test_no_other_host_and_no_markup_from_strings() -> None:
    hosts = set(re.findall(r"https?://[\w.-]+", TEXT))
    assert hosts == {"http://www.w3.org"}  # the name of the SVG namespace, never fetched
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        ".href =",
    ):
        assert way not in SCRIPT
    assert not re.search(r"<[^>]+\s(on\w+|style)=", TEXT.split("<script>")[0].split("</style>")[1])


def test_the_three_languages_have_the_same_words() -> None:
    tables = re.split(r"^(?:en|zh|ja): \{$", SCRIPT.split("const TYPES")[0], flags=re.MULTILINE)[1:]
    keys = [set(re.findall(r'[{,]\s*(\w+): (?=["{])', f"{{{table}")) - {"one", "other"} for table in tables]
    assert len(keys) == 3
    assert len(keys[0]) > 100
    assert keys[0] == keys[1] == keys[2]
    used = set(re.findall(r'\bt\("(\w+)"', SCRIPT)) | set(
        re.findall(r'data-t(?:-label|-placeholder)?="(\w+)"', TEXT)
    )
    assert used <= keys[0]
