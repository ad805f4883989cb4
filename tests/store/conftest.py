from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from qmd.store import Store
from qmd.types import Collection


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "data" / "index.sqlite") as opened:
        opened.add_collection(Collection("notes", "/notes"))
        yield opened


@pytest.fixture
def put(store):
    """put(path, text, **fields of the document) -> document id"""
    import hashlib

    from standin import document

    def _put(path, text, mtime_ns=10**18, collection="notes", **more):
        with store.writing() as writer:
            return writer.put_document(
                collection,
                path,
                size=len(text),
                mtime_ns=mtime_ns,
                hash=hashlib.sha256(text.encode()).digest(),
                document=document(text, **more),
            )

    return _put
