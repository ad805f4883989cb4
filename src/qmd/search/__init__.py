"""Search: query language, keyword and vector lists, fusion, reranking, answers."""
