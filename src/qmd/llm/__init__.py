"""Model engine on ONNX Runtime: embedding, reranking, generation, the right precision on each processor."""
