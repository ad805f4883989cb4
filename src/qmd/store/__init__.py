"""SQLite is the truth: documents, chunks, keyword index and vectors; everything beside it is derived."""
