"""What holds for every document, whatever it was made of."""

from qmd.types import Document


def check_document(document: Document, limit: int, overlap: float = 0.0) -> None:
    text = document.text
    text.encode("utf-8")
    document.title.encode("utf-8")
    assert document.title
    covered = 0
    for chunk in document.chunks:
        assert 0 <= chunk.start < chunk.end <= len(text)
        if overlap:
            assert not text[covered : chunk.start].strip()
        else:
            assert chunk.start >= covered
            assert not text[covered : chunk.start].strip()
        covered = max(covered, chunk.end)
        assert chunk.line == text.count("\n", 0, chunk.start) + 1
        assert chunk.end_line == chunk.line + text.count("\n", chunk.start, chunk.end)
        assert text[chunk.start : chunk.end].strip()
        assert 0 <= chunk.tokens <= limit + 1
        assert len(chunk.heading_path) <= 40
    assert not text[covered:].strip()
    lines = text.count("\n") + 1
    assert all(1 <= link.line <= lines for link in document.links)
