"""Tiny random models of the real architectures, and data to go with them: a whole run in seconds, to try options.

They know nothing and find nothing. Weights are drawn with fan-in scale, so that signals and gradients keep their
size through the layers and a few steps of training can be seen to work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from qmd.errors import MissingExtra

Family = Literal["qwen3_vl", "clip", "siglip", "text", "image", "causal"]

_COLOURS = ("red", "green", "blue", "yellow", "black", "orange", "purple", "cyan")
_SHAPES = ("circle", "square")
_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def make_tiny_model(family: Family, folder: str | Path, *, seed: int = 0) -> str:
    """Write a model of a family, under a megabyte, to `folder`; returns the folder, for `model_name_or_path`."""
    try:
        import torch
        from transformers import set_seed
    except ImportError as error:
        raise MissingExtra("making a tiny model", "train") from error

    state = torch.random.get_rng_state()
    try:
        set_seed(seed)
        maker = {
            "qwen3_vl": _qwen3_vl,
            "clip": _clip,
            "siglip": _siglip,
            "text": _text,
            "image": _image,
            "causal": _causal,
        }[family]
        model = maker(Path(folder))
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.normal_(std=module.in_features**-0.5)
            if family == "qwen3_vl":
                # As large as an image's tokens: beside those, words of .02 are lost, and with them what m2i asks for.
                model.get_input_embeddings().weight.normal_()
        model.save_pretrained(folder)
    finally:
        torch.random.set_rng_state(state)
    return str(folder)


def make_tiny_pairs(folder: str | Path, mode: str = "t2i") -> Path:
    """Sixteen pairs of coloured shapes in a retrieval mode, images beside them; returns the JSONL file.

    Mode `rerank` gives t2t lines with two hard negatives each.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtra("drawing images", "train") from error

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for shape in _SHAPES:
        for number, colour in enumerate(_COLOURS):
            name = f"{colour}-{shape}.png"
            image = Image.new("RGB", (64, 64), "white")
            draw = ImageDraw.Draw(image)
            (draw.ellipse if shape == "circle" else draw.rectangle)((12, 12, 52, 52), fill=colour)
            image.save(folder / name)
            before = f"{_COLOURS[number - 1]}-{shape}.png"
            text = f"a {colour} {shape}"
            rows.append(
                {
                    "t2i": {"query": text, "positive": name},
                    "i2t": {"query": name, "positive": text},
                    "m2i": {"query": f"make it {colour}", "query_image": before, "positive": name},
                    "t2t": {"query": text, "positive": f"the {shape} is {colour}"},
                    "rerank": {
                        "query": text,
                        "positive": f"the {shape} is {colour}",
                        "negatives": [
                            f"the {shape} is {_COLOURS[number - 1]}",
                            f"the {_SHAPES[shape == 'circle']} is {colour}",
                        ],
                    },
                    "i2i": {"query": before, "positive": name},
                }[mode]
            )
    path = folder / f"{mode}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _bpe(vocab_size: int, special: tuple[str, ...]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [f"a {colour} {shape}" for colour in _COLOURS for shape in _SHAPES]
    tokenizer.train_from_iterator([*words, "make it", "the is", "represent the user's input."], trainer)
    return tokenizer


def _qwen3_vl(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLModel

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_bpe(400, _SPECIAL),
        pad_token=_SPECIAL[0],
        eos_token=_SPECIAL[0],
        additional_special_tokens=list(_SPECIAL[1:]),
    )
    tokenizer.save_pretrained(folder)
    number = tokenizer.convert_tokens_to_ids
    rope = {
        "rope_type": "default",
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
        "rope_theta": 10_000.0,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "rope_parameters": rope,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 16,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 256,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    return Qwen3VLModel(config)


def _causal(folder: Path) -> Any:
    """Qwen3, as Qwen3-Reranker is: it answers yes or no."""
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    bpe = _bpe(400, _SPECIAL[:3])
    bpe.add_tokens(["yes", "no"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=_SPECIAL[0], eos_token=_SPECIAL[0])
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config)


def _two_towers(vocab_size: int, end: int) -> dict[str, Any]:
    shared = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {
        "text_config": {
            **shared,
            "vocab_size": vocab_size,
            "max_position_embeddings": 32,
            "projection_size": 48,
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        "vision_config": {**shared, "image_size": 32, "patch_size": 8},
    }


def _clip(folder: Path) -> Any:
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = {"shortest_edge": 32}
    images = CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32})
    end = _save_processor(folder, images, "CLIPProcessor", "CLIPTokenizerFast")
    return CLIPModel(CLIPConfig(**_two_towers(400, end), projection_dim=48))


def _siglip(folder: Path) -> Any:
    from transformers import SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    end = _save_processor(folder, images, "SiglipProcessor", "PreTrainedTokenizerFast")
    return SiglipModel(SiglipConfig(**_two_towers(400, end)))


def _save_processor(folder: Path, images: Any, processor: str, tokenizer_class: str) -> int:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    bpe = _bpe(400, ("<|endoftext|>",))
    end = int(bpe.token_to_id("<|endoftext|>"))
    bpe.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", pair=None, special_tokens=[("<|endoftext|>", end)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=32
    )
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    return end


def _text(folder: Path) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({*_COLOURS, *_SHAPES, "a", "the", "is", "make", "it"})
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *words,
        *"abcdefghijklmnopqrstuvwxyz0123456789.,'?",
    ]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
    )
    return BertModel(config)


def _image(folder: Path) -> Any:
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    return ViTModel(config)
