"""Documents, their names and where they are: what is kept apart and what is found again."""

from __future__ import annotations

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
