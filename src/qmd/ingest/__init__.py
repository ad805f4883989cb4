"""Folders become chunks: walk -> parse -> chunk -> run."""
