"""Training options: every key of the specification acts as named, unknown keys are refused by name."""

from pathlib import Path

import pytest

from qmd.errors import ConfigError
from qmd.vembed.config import PRESETS, load_train_config

NEEDED = ["data_path=train.jsonl", "output_dir=out"]

SPECIFICATION = """
model_name_or_path: Qwen/Qwen3-VL-Embedding-2B
encoder_mode: qwen3_vl
torch_dtype: bfloat16
attn_implementation: flash_attention_2
use_lora: true
lora_r: 16
lora_alpha: 32
data_path: data/train.jsonl
val_data_path: data/val.jsonl
image_root: data/images
retrieval_mode: t2i
output_dir: out
epochs: 3
batch_size: 64
learning_rate: 1.5e-5
weight_decay: 0.01
max_grad_norm: 1.0
gradient_accumulation_steps: 1
scheduler_type: cosine
warmup_ratio: 0.1
loss_type: infonce
temperature: 0.05
use_gradient_cache: true
gradient_cache_chunk_size: 32
gradient_checkpointing: true
use_mrl: true
mrl_dims: [1536, 1024, 768, 512, 256, 128]
logging_steps: 10
save_steps: 0
eval_strategy: epoch
report_to: none
"""


def test_every_key_of_the_specification_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(SPECIFICATION)
    config = load_train_config(path)
    assert config.learning_rate == 1.5e-5
    assert config.mrl_dims == (1536, 1024, 768, 512, 256, 128)
    assert (config.use_gradient_cache, config.gradient_cache_chunk_size) == (True, 32)


def test_overrides_come_last_and_are_typed(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(SPECIFICATION)
    config = load_train_config(
        path,
        overrides=["batch_size=32", "epochs=5", "use_mrl=false", "retrieval_mode=m2i", "learning_rate=2e-4"],
    )
    assert (config.batch_size, config.epochs, config.use_mrl) == (32, 5, False)
    assert (config.retrieval_mode, config.learning_rate) == ("m2i", 2e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load_and_give_way_to_the_file(preset: str, tmp_path: Path) -> None:
    assert load_train_config(preset=preset, overrides=NEEDED).use_lora
    path = tmp_path / "own.yaml"
    path.write_text("lora_r: 4\n")
    assert load_train_config(path, preset=preset, overrides=NEEDED).lora_r == 4


def test_presets_are_those_of_the_specification() -> None:
    a, b, c = (load_train_config(preset=preset, overrides=NEEDED) for preset in PRESETS)
    assert (a.lora_r, a.batch_size, a.use_gradient_cache, a.use_mrl, a.epochs) == (32, 128, False, True, 5)
    assert (b.lora_r, b.batch_size, b.use_gradient_cache, b.use_mrl, b.epochs) == (16, 64, True, True, 3)
    assert (c.lora_r, c.batch_size, c.gradient_cache_chunk_size, c.use_mrl, c.epochs) == (8, 32, 16, False, 3)
    assert c.gradient_accumulation_steps == 2
    assert a.model_name_or_path.endswith("8B")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lr=1e-4", "unknown key 'lr'"),
        ("learning_rat=1e-4", "learning_rate"),
        ("batch_size=many", "batch_size"),
        ("batch_size=0", "above 0"),
        ("retrieval_mode=x2y", "retrieval_mode"),
        ("learning_rate=fast", "expected a number"),
        ("epochs", "key=value"),
        ("encoder_mode=composed", "image tower"),
        ("warmup_ratio=1.5", "warmup_ratio"),
    ],
)
def test_a_wrong_option_is_refused_by_name(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_train_config(overrides=["model_name_or_path=m", *NEEDED, override])


def test_a_missing_option_is_named() -> None:
    with pytest.raises(ConfigError, match="data_path"):
        load_train_config(overrides=["model_name_or_path=m", "output_dir=out"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("loss_type=symmetric_infonce false_negative_margin=0.1", "false_negative_margin works with"),
        ("hardness_weight=1 false_negative_margin=0.1", "without hardness_weight"),
        ("loss_type=cosent hardness_weight=1", "hardness_weight works with"),
        ("seed=-1", "seed must be 0 or more"),
        ("seed=10000000000", "seed must be below"),
        ("logging_steps=0", "logging_steps must be above 0"),
        ("save_steps=-1", "save_steps must be 0 or more"),
        ("max_length=0", "max_length must be above 0"),
        ("learning_rate=.inf", "learning_rate must be finite"),
        ("lora_dropout=2", r"lora_dropout must be in \[0, 1\)"),
        ("use_lora=true encoder_mode=composed image_model_name_or_path=i", "use_lora has no place"),
    ],
)
def test_options_that_cannot_work_are_refused(given: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_train_config(overrides=[*NEEDED, "model_name_or_path=m", *given.split()])
