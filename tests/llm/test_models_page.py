"""The table of models in docs/models.md says what the catalog's rows say."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmd.llm.catalog import CATALOG
from qmd.llm.providers import place_model
from qmd.types import ModelCard

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def cells(card: ModelCard) -> list[str]:
    """What the table says after name and number of parameters."""
    if card.package:
        cpu = cuda = f"{card.variants[0].precision} (package)"
    else:
        placed = [place_model(card, devices) for devices in (("cpu",), ("cuda", "cpu"))]
        cpu, cuda = (
            p.variant.precision if p.device != "cpu" or p is placed[0] else "on the CPU" for p in placed
        )
    languages = " ".join(card.languages) if len(card.languages) < 8 else f"{len(card.languages)} languages"
    lengths = ", ".join(map(str, card.dims)) if card.dims else str(card.dim)
    return [card.role, lengths if card.dim else "", str(card.max_tokens), languages, card.license, cpu, cuda]


def test_one_network_has_one_set_of_languages() -> None:
    hub, package = CATALOG["HuggingFaceTB/SmolLM2-135M-Instruct"], CATALOG["smollm2-135m"]
    assert hub.languages == package.languages == ("en",)


@pytest.mark.parametrize("name", CATALOG)
def test_every_row_of_the_catalog_stands_on_the_page(name: str) -> None:
    lines = [
        line.strip("| \n").split(" | ")
        for line in PAGE.read_text().splitlines()
        if line.startswith(f"| `{name}`")
    ]
    assert len(lines) == 1, f"docs/models.md has {len(lines)} rows for {name}"
    assert [cell.strip() for cell in lines[0][2:]] == cells(CATALOG[name])
