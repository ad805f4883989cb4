"""What `qmd check` looks at: configuration, folders, database, model, vectors, languages. Repairs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qmd.errors import QmdError
from qmd.machine import check_files, check_machine, try_models
from qmd.reports import CheckResult

if TYPE_CHECKING:
    from qmd.config import Config, Places
    from qmd.llm.protocols import Embedder
    from qmd.store import Store

MANY_LANGUAGES = 5
FOREIGN_SHARE = 0.3
"""Share of documents in languages that the model does not read from which `check` says so."""


def run_checks(
    store: Store,
    config: Config,
    places: Places,
    open_embedder: Callable[[], Embedder],
    *,
    models: bool = False,
) -> list[CheckResult]:
    """All checks, in the order a person would ask. `models`: also load every configured model and try it."""
    return [
        CheckResult("configuration", "ok", f"{places.config_dir}"),
        *check_machine(),
        *check_files(config),
        *(try_models(config) if models else ()),
        *_folders(store),
        *_database(store),
        *_vectors(store, config, open_embedder),
    ]


def _folders(store: Store) -> Iterator[CheckResult]:
    collections = store.collections()
    if not collections:
        yield CheckResult("collections", "warning", "there are none", "Run `qmd add PATH`.")
    for collection in collections:
        if Path(collection.root).is_dir():
            message = f"{collection.root}, {collection.documents} documents"
            yield CheckResult(f"collection {collection.name}", "ok", message)
        else:
            yield CheckResult(
                f"collection {collection.name}",
                "warning",
                f"the folder {collection.root} is missing; the index still answers from what it holds",
                f"Mount or restore it, or run `qmd collection remove {collection.name}`.",
            )


def _database(store: Store) -> Iterator[CheckResult]:
    problems = store.integrity()
    for problem in problems:
        yield CheckResult("database", "problem", problem.what, problem.remedy)
    if not problems:
        counts = store.counts()
        message = f"{store.path}: {counts.documents} documents, {counts.chunks} passages, whole"
        yield CheckResult("database", "ok", message)


def _vectors(store: Store, config: Config, open_embedder: Callable[[], Embedder]) -> Iterator[CheckResult]:
    from qmd.llm.cut import doubt_of

    try:
        embedder = open_embedder()
    except QmdError as error:
        yield CheckResult("embedding model", "problem", str(error), "Keyword search works without it.")
        return
    card = embedder.card
    width = f"{embedder.dim} of {card.dim}" if embedder.dim < card.dim else f"{embedder.dim}"
    doubt = doubt_of(card, embedder.dim)
    yield CheckResult(
        "embedding model",
        "warning" if doubt else "ok",
        f"{card.name}, {width} dimensions" + (f"; {doubt}" if doubt else ""),
        f"Run `qmd models use {card.name} --dim {card.dims[-1] if card.dims else card.dim}`."
        if doubt
        else None,
    )
    for model in store.vectors.models():
        if model.fingerprint != embedder.fingerprint and model.count:
            yield CheckResult(
                "vectors",
                "problem",
                f"the index holds {model.count} vectors of {model.name} ({model.dim}d), "
                f"the configuration asks for {card.name} ({embedder.dim}d)",
                "Run `qmd embed --model-changed`, or restore the old model in the configuration.",
            )
    done, total = store.vectors.count(embedder.fingerprint)
    if done < total:
        yield CheckResult("vectors", "warning", f"{done} of {total} passages have one", "Run `qmd embed`.")
    elif total:
        yield CheckResult("vectors", "ok", f"all {total} passages have one")
    yield from _languages(store, embedder)
    yield from _pictures(store, config)


def _pictures(store: Store, config: Config) -> Iterator[CheckResult]:
    """Whether every picture was looked at, and which could not be."""
    if not store.pictures.any() or config.models.image is None:
        return
    from qmd.llm.image_text import open_image_text

    try:
        model = open_image_text(config.models.image)
    except QmdError as error:
        yield CheckResult(
            "pictures", "problem", str(error), "`qmd models use NAME --role image` sets another."
        )
        return
    counts = store.pictures.count(model.fingerprint)
    left = counts.total - counts.done - counts.refused
    if left:
        message = f"{counts.done} of {counts.total} were looked at by {model.card.name}"
        yield CheckResult("pictures", "warning", message, "Run `qmd embed`.")
    else:
        yield CheckResult("pictures", "ok", f"all {counts.total} were looked at by {model.card.name}")
    for collection, path, why in store.pictures.refused(model.fingerprint)[:10]:
        yield CheckResult(f"picture {collection}/{path}", "warning", why, "Found by its words alone.")


def _languages(store: Store, embedder: Embedder) -> Iterator[CheckResult]:
    """A warning for each collection that is largely in languages the model does not read."""
    known = set(embedder.card.languages)
    if not known or "multilingual" in known:
        return
    for collection, counts in store.documents.languages_by_collection().items():
        languages = {name: n for name, n in counts.items() if name and name != "und"}
        foreign = {name: n for name, n in languages.items() if name not in known}
        total, outside = sum(languages.values()), sum(foreign.values())
        if not total or outside <= FOREIGN_SHARE * total:
            continue
        named = ", ".join(f"{name} {n}" for name, n in foreign.items())
        yield CheckResult(
            f"languages of {collection}",
            "warning",
            f"{outside} of {total} documents are in languages that {embedder.card.name} does not read ({named}); "
            "keyword search finds them, search by meaning hardly",
            f"Set `models.embedding` to {_fitting(set(languages))}, and run `qmd embed --model-changed`.",
        )


def _fitting(languages: set[str]) -> str:
    """Models of the catalog that read all these languages, smallest first; those of many languages as the last."""
    from qmd.llm.catalog import CATALOG

    cards = [card for card in CATALOG.values() if card.role == "embedding"]
    exact = [card for card in cards if languages <= set(card.languages)]
    many = [card for card in cards if len(card.languages) >= MANY_LANGUAGES and card not in exact]
    fitting = sorted(exact, key=lambda card: card.dim) + sorted(many, key=lambda card: card.dim)
    names = [card.name for card in fitting[:3]]
    return " or ".join(names) if names else "a model of many languages"
