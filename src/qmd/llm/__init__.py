"""Model engine: embedding, reranking and generation on ONNX Runtime, the right precision on each
processor."""

from qmd.llm.open import open_embedder as open_embedder
