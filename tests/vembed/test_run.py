"""Whole runs on tiny models: they learn, resume bit for bit, keep the best, and write down what they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from qmd.errors import ConfigError, ModelError  # noqa: E402
from qmd.vembed.config import TrainConfig  # noqa: E402
from qmd.vembed.data import DataError, Item  # noqa: E402
from qmd.vembed.evaluation.evaluator import encode_items  # noqa: E402
from qmd.vembed.model.assemble import load_model  # noqa: E402
from qmd.vembed.run import train  # noqa: E402


def losses(folder: str) -> list[float]:
    history = json.loads((Path(folder) / "curve.json").read_text())
    return [row["loss"] for row in history if "loss" in row]


LEARNING = {
    "use_lora": "true",
    "use_mrl": "true",
    "mrl_dims": "[64,32,16]",
    "use_gradient_cache": "true",
    "gradient_cache_chunk_size": 4,
    "epochs": 20,
    "save_steps": 1000,
}


@pytest.mark.parametrize(
    "mode,rank",
    [("t2i", {}), ("i2t", {}), ("m2i", {"lora_r": 32, "lora_alpha": 64})],
    ids=lambda value: str(value)[:3],
)
def test_qwen_learns_with_lora_cache_and_matryoshka(
    configure: Callable[..., TrainConfig], mode: str, rank: dict[str, int]
) -> None:
    """m2i too: the text names a colour, the image a shape, and only both together the image that is meant."""
    config = configure("qwen3_vl", mode, **LEARNING, **rank)
    report = train(config)
    curve = losses(config.output_dir)
    assert report.steps == 20
    assert curve[0] > 2.5
    assert curve[-1] < 1.0


@pytest.mark.parametrize(
    "family,mode", [("clip", "t2i"), ("siglip", "i2t"), ("text", "t2t"), ("composed", "m2i")]
)
def test_every_family_learns_and_reads_back(
    configure: Callable[..., TrainConfig], pairs_of: Callable[[str], Path], family: str, mode: str
) -> None:
    config = configure(
        family, mode, epochs=20, learning_rate="3e-3", save_steps=1000, val_data_path=pairs_of(mode)
    )
    report = train(config)
    curve = losses(config.output_dir)
    assert np.mean(curve[-3:]) < 0.75 * curve[0]
    assert report.metrics["recall@10"] > 10 / 16  # by chance
    side = Item(image=pairs_of("t2i").parent / "red-circle.png") if mode == "m2i" else Item("a red circle")
    first, second = (encode_items(load_model(config.output_dir), [side]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_resume_continues_bit_for_bit(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    options = {"use_lora": "true", "lora_dropout": 0.3, "batch_size": 4, "save_steps": 4, "epochs": 2}
    whole = configure("qwen3_vl", "t2i", **options)
    train(whole)
    stopped = msgspec.structs.replace(whole, output_dir=str(tmp_path / "again"))
    train(stopped)
    for later in (tmp_path / "again" / "checkpoints").glob("checkpoint-8"):
        for file in sorted(later.rglob("*"), reverse=True):
            file.unlink()
        later.rmdir()
    (tmp_path / "again" / "model.safetensors").unlink()
    report = train(stopped, resume=True)
    assert report.steps == 8
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert a == b


def test_a_loss_that_learns_is_resumed_too(configure: Callable[..., TrainConfig]) -> None:
    options = {"loss_type": "sigmoid", "batch_size": 4, "save_steps": 4, "learning_rate": "1e-2"}
    config = configure("text", "t2t", **options)
    train(config)
    model = Path(config.output_dir) / "model.safetensors"
    whole = model.read_bytes()
    shutil.rmtree(Path(config.output_dir) / "checkpoints" / "checkpoint-8")
    train(config, resume=True)
    assert model.read_bytes() == whole


def test_a_run_begun_anew_leaves_no_checkpoint_of_an_earlier_one(
    configure: Callable[..., TrainConfig],
) -> None:
    config = configure("text", "t2t", epochs=3, warmup_ratio=0)
    train(config)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(msgspec.structs.replace(config, epochs=2), progress=stop)
    assert not any((Path(config.output_dir) / "checkpoints").glob("checkpoint-*"))


def test_another_run_is_not_resumed(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = configure("text", "t2t", epochs=1, warmup_ratio=0)
    train(config)
    half = tmp_path / "half.jsonl"
    half.write_text("".join(Path(config.data_path).read_text().splitlines(keepends=True)[:8]))
    others = {"learning_rate was": {"learning_rate": 0.5}, "data were others": {"data_path": str(half)}}
    for says, changes in others.items():
        with pytest.raises(ConfigError, match=says):
            train(msgspec.structs.replace(config, **changes), resume=True)
    moved = tmp_path / "moved.jsonl"
    shutil.copy(config.data_path, moved)
    assert train(msgspec.structs.replace(config, data_path=str(moved)), resume=True).steps == 1


@pytest.mark.parametrize(
    "options",
    [{"save_steps": 1, "eval_strategy": "epoch"}, {"eval_strategy": "steps", "logging_steps": 7}],
    ids=["saved more often", "measured where it logs"],
)
def test_saving_and_measuring_fall_together(
    configure: Callable[..., TrainConfig], pairs_of: Callable[[str], Path], options: dict[str, object]
) -> None:
    config = configure("text", "t2t", val_data_path=pairs_of("t2t"), warmup_ratio=0, **options)
    assert train(config).steps == 2


def test_keeps_the_best_checkpoint_not_the_last(
    configure: Callable[..., TrainConfig], pairs_of: Callable[[str], Path]
) -> None:
    config = configure(
        "clip", "t2i", epochs=6, learning_rate="1e-2", val_data_path=pairs_of("t2i"), eval_strategy="epoch"
    )
    report = train(config)
    history = json.loads((Path(config.output_dir) / "curve.json").read_text())
    seen = [row["eval_recall@1"] for row in history if "eval_recall@1" in row]
    assert len(seen) == 6
    for plot in ("curve.svg", "evaluation.svg"):
        assert (Path(config.output_dir) / plot).read_text().startswith("<svg")
    assert report.metrics["recall@1"] == pytest.approx(max(seen))


def test_writes_down_what_it_was(configure: Callable[..., TrainConfig]) -> None:
    config = configure("text", "t2t", epochs=1, warmup_ratio=0)
    train(config)
    record = json.loads((Path(config.output_dir) / "training.json").read_text())
    assert record["config"] == json.loads(json.dumps(msgspec.to_builtins(config)))
    assert record["data"]["train"]["pairs"] == 16
    assert len(record["data"]["train"]["sha256"]) == 64
    assert record["environment"]["torch"]


def test_learning_rate_acts(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """The specification's source drops `learning_rate`; here a larger one moves further."""
    moved = []
    for rate in ("1e-5", "1e-3"):
        config = configure(
            "text", "t2t", epochs=1, learning_rate=rate, output_dir=tmp_path / rate, warmup_ratio=0
        )
        before = encode_items(load_model_or_start(config), [Item("a red circle")])
        train(config)
        after = encode_items(load_model(config.output_dir), [Item("a red circle")])
        moved.append(float(np.abs(after - before).max()))
    assert moved[1] > 10 * moved[0] > 0


def load_model_or_start(config: TrainConfig):  # type: ignore[no-untyped-def]
    from qmd.vembed.model.assemble import build_model

    return build_model(config)


def test_training_that_moves_nothing_is_an_error(configure: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ModelError, match="changed no vector"):
        train(configure("text", "t2t", epochs=1, warmup_ratio=0.9))


def test_negatives_that_are_not_used_are_said(
    configure: Callable[..., TrainConfig], pairs_of: Callable[[str], Path], tmp_path: Path
) -> None:
    from qmd.vembed.evaluation.report import report_lines

    first, *rest = (json.loads(line) for line in pairs_of("rerank").read_text().splitlines())
    del first["negatives"]
    data = tmp_path / "uneven.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [first, *rest]))
    report = train(configure("text", "t2t", data_path=data, epochs=1, warmup_ratio=0))
    assert report.notes == (
        f"{2 * len(rest)} negatives were left out: 0 a line are used, line 1 has no more.",
    )
    assert report.notes[0] in list(report_lines(report))


@pytest.mark.parametrize(
    ("family", "mode", "lines", "says"),
    [
        ("clip", "t2i", ("t2i", "i2t"), "line 17 is i2t and line 1 is t2i"),
        ("clip", "m2i", ("m2i",), "line 1: mode m2i has text and image together"),
        ("text", "t2i", ("t2i",), "line 1: mode t2i has image"),
    ],
)
def test_lines_that_a_model_does_not_take_are_named(
    configure: Callable[..., TrainConfig],
    pairs_of: Callable[[str], Path],
    family: str,
    mode: str,
    lines: tuple[str, ...],
    says: str,
) -> None:
    data = pairs_of(lines[0]).parent / f"{family}-{mode}.jsonl"
    rows = [(kind, json.loads(line)) for kind in lines for line in pairs_of(kind).read_text().splitlines()]
    data.write_text("".join(json.dumps(row | {"mode": kind}) + "\n" for kind, row in rows))
    with pytest.raises(DataError, match=says):
        train(configure(family, mode, data_path=data))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"use_lora": "true", "lora_target_modules": "[nope]"}, "lora_target_modules"),
        ({"attn_implementation": "flash_attention_2"}, "cannot load model.*attn_implementation"),
        ({"encoder_mode": "qwen3_vl", "model_name_or_path": "no/such"}, "cannot load model 'no/such'"),
        ({"encoder_mode": "clip", "model_name_or_path": "no/such"}, "cannot load model 'no/such'"),
        ({"learning_rate": "1e30", "max_grad_norm": 0, "warmup_ratio": 0}, "smaller learning_rate"),
    ],
    ids=["adapters", "attention", "qwen3_vl", "clip", "diverged"],
)
def test_what_cannot_be_trained_is_said(
    configure: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    says: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import
    with pytest.raises(ModelError, match=says):
        train(configure("text", "t2t", **options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="an accelerator may have bfloat16")
def test_mixed_precision_that_is_not_here_is_said(configure: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match="bf16"):
        train(configure("text", "t2t", torch_dtype="bfloat16"))


@pytest.mark.parametrize("listing", ["{nope", '[{"path": ""}]', '[{"type": "qmd.vembed.model.nope.X"}]'])
def test_a_broken_list_of_modules_is_said(tmp_path: Path, listing: str) -> None:
    (tmp_path / "modules.json").write_text(listing)
    with pytest.raises(ModelError, match=r"no list of modules|not here"):
        load_model(tmp_path)


def test_no_query_or_positive_twice_in_a_batch() -> None:
    from qmd.vembed.data import Pair
    from qmd.vembed.run import dataset_of, distinct_batches

    shared = (Item("wrong"),)
    pairs = [Pair(Item(f"q{n // 2}"), Item(f"p{n}"), shared, "t2t", n) for n in range(40)]
    pairs += [Pair(Item(f"x{n}"), Item("p0"), shared, "t2t", n) for n in range(3)]
    batches = list(distinct_batches(dataset_of(pairs), batch_size=8, drop_last=False, seed=0))
    assert sorted(index for batch in batches for index in batch) == list(range(43))
    for batch in batches:
        assert len({pairs[i].query for i in batch}) == len({pairs[i].positive for i in batch}) == len(batch)
    assert np.mean([len(batch) for batch in batches]) > 5  # the negative that all share does not part them


def test_nothing_to_resume_is_said(configure: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ModelError, match="nothing to resume"):
        train(configure("text", "t2t"), resume=True)


def test_a_model_folder_may_not_name_foreign_code(tmp_path: Path) -> None:
    for kind in ("os.system", "qmd.store.Store"):
        (tmp_path / "modules.json").write_text(
            json.dumps(
                [
                    {"type": kind, "path": "", "idx": 0, "name": "0"},
                    {"type": "qmd.vembed.model.x.Y", "path": ""},
                ]
            )
        )
        with pytest.raises(ModelError, match="neither ours"):
            load_model(tmp_path)


def test_reports_to_tensorboard(configure: Callable[..., TrainConfig]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configure("text", "t2t", epochs=3, warmup_ratio=0, report_to="tensorboard")
    train(config)
    [events] = Path(config.output_dir).rglob("events.out.tfevents.*")
    seen = EventAccumulator(str(events.parent)).Reload()
    steps = [(row.step, round(row.value, 4)) for row in seen.Scalars("train/loss")]
    assert steps == [(n, round(loss, 4)) for n, loss in enumerate(losses(config.output_dir), 1)]


def test_a_reporter_that_is_not_there_is_named(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qmd.errors import MissingExtra
    from qmd.vembed import run

    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"qmd-python\[wandb\]"):
        train(configure("text", "t2t", report_to="wandb"))
    with pytest.raises(ConfigError, match="'comet'"):
        configure("text", "t2t", report_to="comet")
