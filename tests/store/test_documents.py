"""Documents, their names and where they are: what is kept apart and what is found again."""

from __future__ import annotations

import unicodedata

import pytest

from qmd.errors import UsageError


def test_a_copy_in_the_place_of_a_moved_copy_has_a_docid_of_its_own(store, put):
    put("a.md", "same")
    moved = put("b.md", "same")
    with store.writing() as writer:
        writer.move_document(moved, "c.md", size=4, mtime_ns=1)
    put("b.md", "same")
    found = store.list_documents()
    assert {store.find_docid(document.docid).path for document in found} == {"a.md", "b.md", "c.md"}


@pytest.mark.parametrize("name", ["", ".", "..", " x ", "a/b", "a#b"])
def test_a_collection_is_renamed_to_what_could_be_added_only(store, name):
    with pytest.raises(UsageError, match="cannot name a collection"):
        store.rename_collection("notes", name)
    assert set(store.included()) == {"notes"}


@pytest.mark.parametrize(("kept", "asked"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_a_name_is_found_composed_or_not(store, put, kept, asked):
    """A Mac's file names may come decomposed, what is typed comes composed."""
    path, folder = "メモ/ガイド.md", "メモ"
    put(unicodedata.normalize(kept, path), "text")
    assert store.find_document("notes", unicodedata.normalize(asked, path)).id == 1
    for pattern in (path, folder, "*ガイド*"):
        assert store.list_documents(glob=unicodedata.normalize(asked, pattern)), pattern
    assert store.find_document("notes", "メモ/カイト.md") is None


def test_of_two_names_that_look_alike_the_one_asked_for_is_found(store, put):
    names = [unicodedata.normalize(form, "ガ.md") for form in ("NFC", "NFD")]
    for name in names:
        put(name, name)
    assert [store.find_document("notes", name).path for name in names] == names


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("app/[id]", {"app/[id]/page.md"}),
        ("app/[id]/page.md", {"app/[id]/page.md", "app/i/page.md"}),
        ("app/[id]/*.md", {"app/[id]/page.md", "app/i/page.md"}),
        ("**/[id]/*", {"app/[id]/page.md", "app/i/page.md"}),
        ("app/[a-z]/*", {"app/i/page.md"}),
        ("why?", {"why?/not.md"}),
    ],
)
def test_brackets_are_part_of_a_name_or_of_a_glob(store, put, pattern, expected):
    for path in ("app/[id]/page.md", "app/i/page.md", "app/other/page.md", "why?/not.md"):
        put(path, "text")
    assert {document.path for document in store.list_documents(glob=pattern)} == expected
