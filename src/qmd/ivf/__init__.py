"""A Faiss-like vector index in PyTorch, one code on CPU, CUDA, ROCm and DirectML."""
