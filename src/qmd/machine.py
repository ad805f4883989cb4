"""What `qmd check` says of this machine and of the models that are configured."""

from __future__ import annotations

import platform
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from qmd.errors import QmdError, hide_password
from qmd.reports import CheckResult

if TYPE_CHECKING:
    from qmd.config import Config
    from qmd.types import Role

GIB = 1024**3
OLDEST_SQLITE = (3, 35, 0)


def check_machine() -> Iterator[CheckResult]:
    """Python, SQLite, where models can run, memory."""
    from qmd.llm.memory import gpus, machine_bytes, peak_bytes, process_bytes

    yield CheckResult(
        "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    yield _sqlite()
    yield _providers()
    for gpu in gpus():
        own = "" if gpu.own_bytes is None else f", {gpu.own_bytes / GIB:.1f} GiB by this process"
        message = f"{gpu.name}: {gpu.used_bytes / GIB:.1f} of {gpu.total_bytes / GIB:.1f} GiB in use{own}"
        yield CheckResult("gpu", "ok", message, figures=asdict(gpu))
    machine, own_bytes = machine_bytes(), process_bytes()
    if machine is not None:
        total, free = machine
        figures = {
            "total_bytes": total, "available_bytes": free, "process_bytes": own_bytes, "peak_bytes": peak_bytes(),
        }  # fmt: skip
        own_mib = (own_bytes or 0) / 2**20
        message = f"{free / GIB:.1f} of {total / GIB:.1f} GiB available, {own_mib:.0f} MiB in this process"
        yield CheckResult("memory", "ok" if free > GIB / 2 else "warning", message, figures=figures)


def _sqlite() -> CheckResult:
    with sqlite3.connect(":memory:") as probe:
        try:
            probe.execute("CREATE VIRTUAL TABLE t USING fts5(x)")
            full_text = True
        except sqlite3.OperationalError:
            full_text = False
        json = bool(probe.execute("SELECT json('1')").fetchone())
    words = {True: "yes", False: "no"}
    version = f"{sqlite3.sqlite_version}, full-text search {words[full_text]}, JSON {words[json]}"
    if not full_text or sqlite3.sqlite_version_info < OLDEST_SQLITE:
        return CheckResult(
            "sqlite", "problem", version, "Use a Python whose SQLite is 3.35 or later, built with FTS5."
        )
    return CheckResult("sqlite", "ok", version)


def _providers() -> CheckResult:
    try:
        from qmd.llm.providers import available_devices
        from qmd.llm.session import default_threads

        devices, threads = available_devices(), default_threads()
    except ImportError as error:
        remedy = "Run `pip install --force-reinstall onnxruntime`."
        return CheckResult("providers", "problem", f"ONNX Runtime does not load: {error}", remedy)
    message = f"models run on {', '.join(devices)}; {threads} threads"
    return CheckResult("providers", "ok", message, figures={"devices": list(devices), "threads": threads})


def configured_models(config: Config) -> list[tuple[str, Role, str]]:
    """(key in the configuration, role, name) of the models that are configured."""
    models = config.models
    rows: list[tuple[str, Role, str | None]] = [
        ("embedding", "embedding", models.embedding),
        ("reranker", "reranker", models.reranker),
        ("expansion", "generation", models.expansion),
        ("generation", "generation", models.generation),
        ("image", "image", models.image),
    ]
    return [(key, role, name) for key, role, name in rows if name]


def check_files(config: Config) -> Iterator[CheckResult]:
    """Are the configured models on this machine, and are they the files that were pinned? Loads none of them."""
    for key, role, name in configured_models(config):
        if name.startswith(("http://", "https://")):
            message = f"{hide_password(name)} (a server; `qmd check --models` asks it)"
            yield CheckResult(f"model {key}", "ok", message)
            continue
        try:
            yield CheckResult(f"model {key}", "ok", f"{name}: {_verified(name, role)}")
        except QmdError as error:
            message, _, remedy = str(error).partition(". ")
            if "is not on this machine" in message:
                message, remedy = (
                    f"{name} is not on this machine",
                    f"Run `qmd models pull {name} --role {role}`.",
                )
            yield CheckResult(f"model {key}", "warning", message, remedy or None)


def _verified(name: str, role: Role) -> str:
    from qmd.llm.adapted import is_adapter, read_adapter
    from qmd.llm.catalog import CATALOG
    from qmd.llm.files import find_packaged_file, local_path
    from qmd.llm.hub_gguf import find_gguf_on_hub, is_gguf_on_hub
    from qmd.llm.open import find_card, find_files

    if role == "generation" or role == "reranker":
        if is_gguf_on_hub(name):
            return f"here, verified, {find_gguf_on_hub(name, download=False).name}"
        if name.endswith(".gguf"):
            if not local_path(name).is_file():
                raise QmdError(f"there is no file {name}. Correct the configuration.")
            return "here"
    if role == "image":
        from qmd.llm.image_text import check_image_text

        return check_image_text(name)
    if role == "embedding" and is_adapter(name):
        base = read_adapter(local_path(name))[0]["base"]
        return f"here, over {hide_password(base)}: {'a server' if '://' in base else _verified(base, role)}"
    card = (
        CATALOG.get(name) if role == "reranker" else None
    )  # one that writes text can be asked for yes or no
    card = card or find_card(name, role)
    if card.package:
        find_packaged_file(card)
        return "installed, verified"
    _, placement = find_files(card, download=False)
    note = f" ({placement.note})" if placement.note else ""
    return f"here, verified, {placement.variant.precision} for {placement.device}{note}"


def try_models(config: Config) -> Iterator[CheckResult]:
    """Load every configured model and let it work: where it runs and how fast."""
    from qmd.llm.verify import verify_model

    for key, role, name in configured_models(config):
        shown = hide_password(name)
        try:
            found = verify_model(name, role, dim=config.models.dim if role == "embedding" else None)
        except QmdError as error:
            message, _, remedy = str(error).partition(". ")
            yield CheckResult(f"{key} works", "problem", f"{shown}: {message}", remedy or None)
            continue
        memory = "" if found.memory_bytes is None else f", {found.memory_bytes / 2**20:.0f} MiB"
        gpu = "" if found.gpu_bytes is None else f", {found.gpu_bytes / 2**20:.0f} MiB on the GPU"
        message = (
            f"{shown} on {found.runs_on}: {found.speed:,.0f} {found.unit}, first answer after {found.first_ms:.0f} ms, "
            f"loaded in {found.load_s:.1f} s{memory}{gpu}"
        )
        yield CheckResult(f"{key} works", "ok", message, figures={**asdict(found), "name": shown})
    missing = [key for key in ("reranker", "expansion", "generation") if getattr(config.models, key) is None]
    if missing:
        names = ", ".join(f"models.{key}" for key in missing)
        yield CheckResult("not configured", "ok", f"{names}; `qmd models use NAME --role ROLE` sets one")
