"""How good an embedding model is at finding: metrics, per mode and per Matryoshka dimension."""
