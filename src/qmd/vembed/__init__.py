"""Fine-tuning, evaluation and export of embedding models, text and images."""
