"""The gradient cache against one big batch: the same gradient, in every mode, with LoRA, Matryoshka and dropout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from qmd.vembed.config import TrainConfig  # noqa: E402
from qmd.vembed.data import read_pairs  # noqa: E402
from qmd.vembed.losses import build_loss  # noqa: E402
from qmd.vembed.model.assemble import add_lora, build_model  # noqa: E402
from qmd.vembed.run import dataset_of, preprocessor  # noqa: E402

CHUNK = 4
CASES = [
    ("qwen3_vl", "t2i", {"use_lora": "true", "lora_dropout": 0.2}),
    ("qwen3_vl", "i2t", {"use_lora": "true"}),
    ("qwen3_vl", "m2i", {"use_lora": "true", "lora_dropout": 0.2}),
    ("text", "t2t", {}),  # dropout 0.1 inside
    ("composed", "t2i", {"projection_dim": 64}),
    ("composed", "m2i", {"projection_dim": 64, "freeze_towers": "true"}),
    ("composed", "i2i", {"projection_dim": 64, "loss_type": "symmetric_infonce"}),
    ("clip", "i2t", {"use_lora": "true"}),
    ("siglip", "t2i", {"hardness_weight": 5.0}),
]


def columns(model: Any, config: TrainConfig) -> list[dict[str, Any]]:
    pairs = read_pairs(config.data_path, retrieval_mode=config.retrieval_mode).pairs
    data, prepare = dataset_of(pairs), preprocessor(model)
    return [prepare(list(data[name])) for name in ("query", "positive")]


def chunked(model: Any) -> Callable[..., dict[str, Any]]:
    """The model's forward over chunks with every activation kept: dropout falls as it does under the cache."""
    from sentence_transformers.base.losses.gradcache import _create_minibatch

    whole = model.forward

    def forward(features: dict[str, Any], **options: Any) -> dict[str, Any]:
        parts = [
            whole(_create_minibatch(features, start, start + CHUNK), **options)["sentence_embedding"]
            for start in range(0, 16, CHUNK)
        ]
        return {"sentence_embedding": torch.cat(parts)}

    return forward


def gradient(config: TrainConfig, dtype: Any, *, cached: bool) -> tuple[float, Any]:
    torch.manual_seed(1)
    model = build_model(config)
    if config.use_lora:
        add_lora(model, config)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.normal_(std=0.1)
    model = model.to(dtype).train()
    features = columns(model, config)
    for column in features:
        for key, value in column.items():
            if torch.is_tensor(value) and value.is_floating_point():
                column[key] = value.to(dtype)
    loss = build_loss(model, msgspec.structs.replace(config, use_gradient_cache=cached))
    if not cached:
        model.forward = chunked(model)
    torch.manual_seed(2)
    value = loss(features, None)
    value.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
    return value.item(), torch.cat(grads).double()


@pytest.mark.parametrize("family,mode,options", CASES, ids=[f"{f}-{m}" for f, m, _ in CASES])
@pytest.mark.parametrize("dtype,tolerance", [("float32", 1e-5), ("float64", 1e-12)])
def test_equals_the_big_batch(
    configure: Callable[..., TrainConfig],
    family: str,
    mode: str,
    options: dict[str, Any],
    dtype: str,
    tolerance: float,
) -> None:
    config = configure(
        family, mode, use_mrl="true", mrl_dims="[48,32,16]", gradient_cache_chunk_size=CHUNK, **options
    )
    plain_loss, plain = gradient(config, getattr(torch, dtype), cached=False)
    cached_loss, cached = gradient(config, getattr(torch, dtype), cached=True)
    assert plain.norm() > 1e-3
    assert cached_loss == pytest.approx(plain_loss, rel=tolerance)
    assert ((cached - plain).norm() / plain.norm()).item() <= tolerance


RANKS = """
import json, os, sys
import torch
import torch.distributed as dist
import msgspec
from torch.nn.parallel import DistributedDataParallel
from qmd.vembed.config import load_train_config
from qmd.vembed.data import read_pairs
from qmd.vembed.losses import build_loss
from qmd.vembed.model.assemble import add_lora, build_model
from qmd.vembed.run import dataset_of, preprocessor

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
differences = {}
for case in json.loads(sys.argv[1]):
    config = load_train_config(overrides=case["options"])

    def gradient(part, ranks):
        torch.manual_seed(1)
        model = build_model(config)
        if config.use_lora:
            add_lora(model, config)
        model = model.double().eval()  # no dropout: random numbers differ between ranks
        pairs = read_pairs(config.data_path, retrieval_mode=config.retrieval_mode).pairs
        data, prepare = dataset_of(pairs), preprocessor(model)
        features = [prepare([data[name][i] for i in part]) for name in ("query", "positive")]
        for column in features:
            for key, value in column.items():
                if torch.is_tensor(value) and value.is_floating_point():
                    column[key] = value.double()
        loss = build_loss(model, config, ranks=ranks)
        value = loss(features, None)
        value.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        if ranks > 1:  # what DistributedDataParallel does with gradients
            dist.all_reduce(grads)
            grads /= ranks
        return grads

    shared = gradient(range(rank * 8, rank * 8 + 8), ranks)
    whole = gradient(range(16), 1)
    differences[case["name"]] = ((shared - whole).norm() / whole.norm()).item()
if rank == 0:
    print(json.dumps(differences))
dist.destroy_process_group()
"""


def test_two_ranks_give_the_gradient_of_one(configure: Callable[..., TrainConfig], tmp_path: Path) -> None:
    cases = []
    for family, mode, options in (
        ("text", "t2t", {"use_gradient_cache": "true", "gradient_cache_chunk_size": 4}),
        ("text", "t2t", {}),
        (
            "qwen3_vl",
            "m2i",
            {"use_gradient_cache": "true", "gradient_cache_chunk_size": 4, "use_lora": "true"},
        ),
        ("composed", "t2i", {"use_gradient_cache": "true", "loss_type": "symmetric_infonce"}),
    ):
        config = configure(family, mode, use_mrl="true", mrl_dims="[32,16]", **options)
        values = msgspec.to_builtins(config)
        cases.append(
            {
                "name": f"{family}-{mode}-{len(options)}",
                "options": [f"{key}={json.dumps(value)}" for key, value in values.items()],
            }
        )
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20_000 + os.getpid() % 20_000),
        "WORLD_SIZE": "2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, str(script), json.dumps(cases)]
    processes = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], (
        outputs[0][1][-2000:] + outputs[1][1][-2000:]
    )
    differences = json.loads(outputs[0][0].splitlines()[-1])
    assert len(differences) == len(cases)
    assert max(differences.values()) <= 1e-12, differences


@pytest.mark.soak
def test_accelerate_launch_on_two_ranks_ends_where_one_process_does(
    configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """The whole command: two ranks of 8 pairs take the steps of one process with 16, all negatives seen by both."""
    from safetensors.torch import load_file

    ends = {}
    for ranks in (1, 2):
        output = tmp_path / f"ranks-{ranks}"
        config = configure(
            "clip", "t2i", batch_size=16 // ranks, epochs=3, learning_rate="1e-3", output_dir=output, warmup_ratio=0,
            use_gradient_cache="true", gradient_cache_chunk_size=4, use_mrl="true", mrl_dims="[24]",
        )  # fmt: skip
        given = [f"{key}={json.dumps(value)}" for key, value in msgspec.to_builtins(config).items()]
        launch = ["-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes", str(ranks)]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
        # With --cpu it would start the second rank by MPI alone; several ranks are what --multi_gpu is for, and the
        # environment below keeps them on the processor, where they speak gloo.
        launch += ["--multi_gpu"] if ranks == 2 else ["--cpu"]
        done = subprocess.run(
            [sys.executable, *launch, "-m", "qmd.vembed", "--config_override", *given],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("3 steps, mean loss") == 1  # only the first rank speaks
        ends[ranks] = load_file(output / "model.safetensors")
    one, two = ends[1], ends[2]
    assert one.keys() == two.keys()
    difference = max((one[key] - two[key]).abs().max().item() for key in one)
    assert difference < 1e-4, difference
