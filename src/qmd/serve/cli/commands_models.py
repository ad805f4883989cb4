"""`qmd models ...`: which models there are, which are on this machine; fetch one, remove one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from qmd.serve.cli import exits
from qmd.serve.cli.lazy import LazyGroup, Place
from qmd.serve.cli.options import command, output_options
from qmd.serve.cli.session import Session, pass_session

if TYPE_CHECKING:
    from pathlib import Path

_HERE = "qmd.serve.cli.commands_models"

PLACES = {
    "list": Place(f"{_HERE}:list_", "List the models of the catalog and those on this machine."),
    "pull": Place(f"{_HERE}:pull", "Download the variant of a model that fits this machine, and verify it."),
    "use": Place(
        f"{_HERE}:use", "Make a model the configured one; a new embedding model makes the vectors anew."
    ),
    "export": Place(f"{_HERE}:export", "Write a trained or a GGUF model as an ONNX folder."),
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
    checked: str = ""


@click.group(
    cls=LazyGroup,
    places=PLACES,
    aliases={"rm": "remove", "ls": "list"},
    epilog="""
    qmd models list
    qmd models pull BAAI/bge-m3
    qmd models use BAAI/bge-m3
    qmd models remove BAAI/bge-m3
    """,
)
def models() -> None:
    """List, fetch, choose and remove models.

    The configuration names the model of each role (`models.embedding`, `models.reranker`, ...); a model that is
    missing is downloaded when it is first needed. `qmd models use` changes the configuration; after another
    embedding model the vectors are made anew.
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
            card.checked,
        )
        for card in CATALOG.values()
    ]
    rows += [ModelRow(repo, "", 0, (), "", False, size) for repo, size in sorted(sizes.items())]
    width = max(len(row.name) for row in rows)

    def line(row: ModelRow) -> str:
        place = "installed" if row.packaged else "-" if row.bytes is None else f"{row.bytes / 1e6:.0f} MB"
        unchecked = "" if row.checked or row.bytes is not None else "  (file names not checked)"
        return f"{row.name:{width}}  {row.role or '?':10}  {place:>10}  {' '.join(row.languages)}{unchecked}".rstrip()

    answer_list(session, rows, tuple(ModelRow.__slots__), map(line, rows))


@command(
    epilog="""
    qmd models pull BAAI/bge-m3
    qmd models pull me/my-model --revision v2
    qmd models pull Qwen/Qwen3-0.6B-GGUF:Q8_0
    """
)
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(("embedding", "reranker", "generation")),
    default="embedding",
    show_default=True,
    help="What a model that the catalog does not know is for.",
)
@click.option("--revision", default=None, help="Branch, tag or commit to pin instead of the one in use.")
@pass_session
def pull(session: Session, name: str, role: str, revision: str | None) -> None:
    """Download the variant of a model that fits this machine, and verify it.

    The commit of the first download is used ever after; --revision moves the model to another one. Of a repository of
    GGUF files one is taken: Q4_K_M or the nearest to it, or the one that is named after a colon.
    """
    from typing import cast

    from qmd.llm.hub_gguf import find_gguf_on_hub, is_gguf_on_hub
    from qmd.llm.open import find_card, find_files
    from qmd.serve.cli.screen import say
    from qmd.types import Role

    if is_gguf_on_hub(name):
        path = find_gguf_on_hub(name, revision=revision)
        say(f"{name} is here ({path.stat().st_size / 1e6:.0f} MB, commit {path.parent.name[:12]}): {path}")
        return
    files, placement = find_files(find_card(name, cast("Role", role)), revision=revision)
    commit = f", commit {files.card.revision[:12]}" if files.card.revision else ""
    say(f"{name} is here ({placement.variant.precision} for {placement.device}{commit}): {files.graph}")


_KEYS = {
    "embedding": "embedding",
    "reranker": "reranker",
    "expansion": "generation",
    "generation": "generation",
    "image": "image",
}


@command(
    epilog="""
    qmd models use BAAI/bge-m3
    qmd models use Qwen/Qwen3-Embedding-0.6B --dim 256
    qmd models use ./my-trained-model
    qmd models use http://localhost:11434/api/embed?model=nomic-embed-text
    qmd models use cross-encoder/ms-marco-MiniLM-L-6-v2 --role reranker
    """
)
@click.argument("name")
@click.option(
    "--role", type=click.Choice(tuple(_KEYS)), default="embedding", show_default=True, help="What for."
)
@click.option(
    "--dim",
    type=click.IntRange(min=1),
    default=None,
    help="Cut the vectors to so many numbers; without it they stay whole.",
)
@click.option(
    "--embed/--no-embed", default=True, show_default=True, help="Make the vectors of the index anew."
)
@pass_session
def use(session: Session, name: str, role: str, dim: int | None, embed: bool) -> None:
    """Make a model the configured one; a new embedding model makes the vectors anew.

    NAME is of the catalog, of a hub, a folder (also one that `qmd train` exported) or the address of an embedding
    server. The model is loaded and tried first; where that fails, nothing is changed. Vectors of the old model stay
    until the new ones are complete, and are never compared with them. --dim makes them shorter, and the
    index smaller: at little cost for models that were trained for it.
    """
    from typing import cast

    import msgspec

    from qmd.config import CONFIG_NAME, set_model
    from qmd.errors import UsageError, hide_password
    from qmd.llm.files import local_path
    from qmd.llm.verify import verify_model
    from qmd.serve.cli.screen import say
    from qmd.trust import check_config_of
    from qmd.types import Role

    local = local_path(name)
    if local.exists() and "://" not in name:
        name = str(local.absolute())
    if dim is not None and role != "embedding":
        raise UsageError(f"--dim is for embedding models, not for {role}.")
    places, config = session.settings()
    wanted = msgspec.structs.replace(config.models, **{role: name})
    check_config_of(places, msgspec.structs.replace(config, models=wanted))
    found = verify_model(name, cast("Role", _KEYS[role]), dim=dim)
    say(f"{hide_password(name)} works on {found.runs_on}: {found.speed:,.0f} {found.unit}.")
    if getattr(config.models, role) != name:
        set_model(places.config_dir / CONFIG_NAME, role, name)
        say(f"models.{role} is now {hide_password(name)} ({places.config_dir / CONFIG_NAME}).")
    if role == "embedding":
        if config.models.dim != dim:
            set_model(places.config_dir / CONFIG_NAME, "dim", dim)
            say(f"models.dim is now {'null: vectors stay whole' if dim is None else dim}.")
        if found.doubt:
            say(f"Note: {found.doubt}.")
        _embed_anew(session, embed)
    if role == "image":
        _look_anew(session, embed)


def _look_anew(session: Session, embed: bool) -> None:
    """Pictures are looked at again by the new model; vectors of the old one go once it has seen them all."""
    from qmd.errors import NotFound
    from qmd.serve.cli.commands_upkeep import embed_lines
    from qmd.serve.cli.progress import ProgressLine
    from qmd.serve.cli.screen import say

    try:
        index = session.open()
    except NotFound:
        return  # nothing is indexed yet
    with index:
        if not embed:
            say("`qmd embed` looks at the pictures with it.")
            return
        with ProgressLine() as progress:
            report = index.embed(progress=progress)
        for line in embed_lines(report):
            say(line)


def _embed_anew(session: Session, embed: bool) -> None:
    from qmd.errors import NotFound
    from qmd.serve.cli.commands_upkeep import embed_lines
    from qmd.serve.cli.progress import ProgressLine
    from qmd.serve.cli.screen import say

    try:
        index = session.open()
    except NotFound:
        return  # nothing is indexed yet
    with index:
        others = [v for v in index.status().vectors if v.fingerprint != index.embedder.fingerprint and v.done]
        if not embed:
            if others:
                say("The index holds vectors of another model: `qmd embed --model-changed` makes them anew.")
            return
        with ProgressLine() as progress:
            report = index.embed(model_changed=True, progress=progress)
        for line in embed_lines(report):
            say(line)
        if report.interrupted:
            say("Interrupted. `qmd embed --model-changed` goes on from there.")
            click.get_current_context().exit(exits.INTERRUPTED)


@command(
    epilog="""
    qmd models export ./adapted ./adapted-onnx
    qmd models export smollm2-135m ./smollm2-onnx --precision int8
    """
)
@click.argument("name")
@click.argument("folder", type=click.Path(file_okay=False))
@click.option(
    "--precision",
    type=click.Choice(("fp32", "int8", "q4")),
    help="Of the products; without it q4 for GGUF, fp32 and int8 for a trained model.",
)
def export(name: str, folder: str, precision: str | None) -> None:
    """Write a trained or a GGUF model as an ONNX folder.

    NAME is a folder that `qmd train` left, a GGUF file (here or of a hub), or a packaged model such as smollm2-135m.
    The folder can be given wherever a model is named; a trained model is compared with its files before they count
    as written.
    """
    from pathlib import Path
    from typing import cast

    from qmd.errors import UsageError
    from qmd.llm.causal_graph import Precision
    from qmd.llm.fastest import write_folder
    from qmd.llm.files import local_path
    from qmd.llm.open import find_gguf
    from qmd.serve.cli.screen import say

    source = local_path(name)
    if source.is_dir():
        say(_export_trained(source, Path(folder), precision))
        return
    gguf = find_gguf(name)[0]
    if gguf is None:
        raise UsageError(f"{name} is no GGUF model; it has ONNX files already. Run `qmd models pull {name}`.")
    if not gguf.is_file():
        raise UsageError(f"there is no file {gguf}.")
    graph = write_folder(gguf, Path(folder), cast("Precision", precision or "q4"))
    say(f"{graph} is written ({graph.stat().st_size / 1e6:.0f} MB).")


def _export_trained(source: Path, folder: Path, precision: str | None) -> str:
    """What was written of a folder that `qmd train` left."""
    from qmd.errors import UsageError
    from qmd.llm.adapted import is_adapter

    if is_adapter(str(source)):
        raise UsageError(f"{source} is an adapter and needs no export: `qmd models use {source}`.")
    if precision == "q4":
        raise UsageError("a trained model is written as fp32 or int8, not as q4.")
    from qmd.vembed.export import export_onnx, training_record
    from qmd.vembed.rerank.export import export_reranker

    reranks = training_record(source).get("config", {}).get("task") == "rerank"
    report = (export_reranker if reranks else export_onnx)(source, folder, int8=precision != "fp32")
    sizes = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in report.files.items())
    return f"{sizes} are written to {folder}. `qmd models use {folder}{' --role reranker' * reranks}` makes it yours."


@command(epilog="qmd models remove BAAI/bge-m3")
@click.argument("name")
@pass_session
def remove(session: Session, name: str) -> None:
    """Delete a downloaded model; vectors that it made stay in the index."""
    from qmd.errors import NotFound
    from qmd.llm.catalog import CATALOG
    from qmd.llm.hub import remove_cached
    from qmd.llm.hub_gguf import repository_of
    from qmd.serve.cli.screen import say

    card = CATALOG.get(name)
    name = repository_of(name)
    if not remove_cached([card.repo or card.name if card else name]):
        raise NotFound(f"{name} is not among the downloaded models. `qmd models list` shows them.")
    say(f"{name} was removed.")
