"""Model engine: embedding, reranking, generation on ONNX Runtime; the right precision on each processor."""

from qmd.llm.open import find_card as find_card
from qmd.llm.open import open_embedder as open_embedder
from qmd.llm.open import open_generator as open_generator
from qmd.llm.open import open_reranker as open_reranker
