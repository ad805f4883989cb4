"""Model engine on ONNX Runtime: embedding, reranking, generation, the right precision on each processor."""

from qmd.llm.open import open_embedder as open_embedder
