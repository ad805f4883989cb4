"""`qmd models ...`: which models there are, which are on this machine; fetch one, remove one."""

from __future__ import annotations

from dataclasses import dataclass

import click

from qmd.serve.cli.lazy import LazyGroup, Place
from qmd.serve.cli.options import command, output_options
from qmd.serve.cli.session import Session, pass_session

_HERE = "qmd.serve.cli.commands_models"

PLACES = {
    "list": Place(f"{_HERE}:list_", "List the models of the catalog and those on this machine."),
    "pull": Place(f"{_HERE}:pull", "Download the variant of a model that fits this machine, and verify it."),
    "remove": Place(f"{_HERE}:remove", "Delete a downloaded model; vectors that it made stay in the index."),
}


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model: in the catalog, on this machine, or both. `bytes` is None where it is not downloaded."""

    name: str
    role: str
    dim: int
    languages: tuple[str, ...]
    license: str
    packaged: bool
    bytes: int | None


@click.group(
    cls=LazyGroup,
    places=PLACES,
    aliases={"rm": "remove", "ls": "list"},
    epilog="""
    qmd models list
    qmd models pull BAAI/bge-m3
    qmd models remove BAAI/bge-m3
    """,
)
def models() -> None:
    """List, fetch and remove models.

    The configuration names the model of each role (`models.embedding`, `models.reranker`, ...); a model that is
    missing is downloaded when it is first needed. After another embedding model is configured, `qmd embed
    --model-changed` makes the vectors anew.
    """


@command(epilog="qmd models list --json")
@output_options("cli", "json", "jsonl", "csv")
@pass_session
def list_(session: Session) -> None:
    """List the models of the catalog and those on this machine."""
    from qmd.llm.catalog import CATALOG
    from qmd.llm.hub import cached_models
    from qmd.serve.cli.answer import answer_list

    sizes = cached_models()
    rows = [
        ModelRow(
            card.name,
            card.role,
            card.dim,
            card.languages,
            card.license,
            bool(card.package),
            sizes.pop(card.repo or card.name, None),
        )
        for card in CATALOG.values()
    ]
    rows += [ModelRow(repo, "", 0, (), "", False, size) for repo, size in sorted(sizes.items())]
    width = max(len(row.name) for row in rows)

    def line(row: ModelRow) -> str:
        place = "installed" if row.packaged else "-" if row.bytes is None else f"{row.bytes / 1e6:.0f} MB"
        return f"{row.name:{width}}  {row.role or '?':10}  {place:>10}  {' '.join(row.languages)}".rstrip()

    answer_list(session, rows, tuple(ModelRow.__slots__), map(line, rows))


@command(epilog="qmd models pull BAAI/bge-m3")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(("embedding", "reranker", "generation")),
    default="embedding",
    show_default=True,
    help="What a model that the catalog does not know is for.",
)
@pass_session
def pull(session: Session, name: str, role: str) -> None:
    """Download the variant of a model that fits this machine, and verify it."""
    from typing import cast

    from qmd.llm.open import find_card, find_files
    from qmd.serve.cli.screen import say
    from qmd.types import Role

    files, placement = find_files(find_card(name, cast("Role", role)))
    say(f"{name} is here ({placement.variant.precision} for {placement.device}): {files.graph}")


@command(epilog="qmd models remove BAAI/bge-m3")
@click.argument("name")
@pass_session
def remove(session: Session, name: str) -> None:
    """Delete a downloaded model; vectors that it made stay in the index."""
    from qmd.errors import NotFound
    from qmd.llm.catalog import CATALOG
    from qmd.llm.hub import remove_cached
    from qmd.serve.cli.screen import say

    card = CATALOG.get(name)
    if not remove_cached([card.repo or card.name if card else name]):
        raise NotFound(f"{name} is not among the downloaded models. `qmd models list` shows them.")
    say(f"{name} was removed.")
