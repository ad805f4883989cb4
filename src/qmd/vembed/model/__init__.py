"""The models that can be taught: one input module a family, assembled with sentence-transformers."""
