"""Teach a reranker: a model that reads a query and a text together and says how well they fit."""
