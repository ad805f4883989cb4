"""Model engine: embedding, reranking and generation on ONNX Runtime, the right precision on each processor."""
