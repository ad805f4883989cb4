"""What pictures do to a search for texts, and whether a question that names a picture finds it.

    python benchmarks/pictures.py FOLDER ASSETS [--keep DIR] [--pictures 2000] [--named 200]

FOLDER: a BEIR folder (corpus.jsonl, queries.jsonl, qrels.tsv). ASSETS: a node_modules folder with `openmoji`. Texts are
indexed and searched; then pictograms with names that say nothing join the same index, and the same questions are asked
again. Printed: nDCG@10 before and after, how many questions show a picture, the rank of the picture whose name is asked
for (taught to the model, so this measures the search, not what the model makes of new things), and times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from environment import append_result
from quality import build, measure, read_beir

import qmd
from qmd.config import Config


def ask(
    index: qmd.Index, queries: dict[str, str], ids: dict[str, str], relevant: dict[str, set[str]]
) -> dict[str, float]:
    figures, pictures, times = [], 0, []
    for query, text in queries.items():
        start = time.perf_counter()
        hits = index.query(text, limit=100)
        times.append(1e3 * (time.perf_counter() - start))
        pictures += any(hit.image is not None for hit in hits[:10])
        figures.append(measure([ids.get(hit.path, "") for hit in hits], relevant[query]))
    return {
        "ndcg10": 100 * statistics.fmean(f["ndcg10"] for f in figures),
        "questions": len(figures),
        "questions_with_a_picture": pictures,
        "median_ms": statistics.median(times),
    }


def draw(assets: Path, folder: Path, count: int) -> dict[str, str]:
    """Pictograms as PNG files, with numbers for names: file name -> what it shows."""
    import resvg_py

    folder.mkdir(parents=True, exist_ok=True)
    rows = json.loads((assets / "openmoji" / "data" / "openmoji.json").read_text(encoding="utf-8"))
    rows = [row for row in rows if row["group"] not in ("flags", "component") and not row["skintone"]]
    shown: dict[str, str] = {}
    for row in rows[:count]:
        drawing = assets / "openmoji" / "color" / "svg" / f"{row['hexcode']}.svg"
        if not drawing.exists():
            continue
        file = folder / f"p{len(shown):05d}.png"
        if not file.exists():
            file.write_bytes(bytes(resvg_py.svg_to_bytes(svg_path=str(drawing), width=128, height=128)))
        shown[file.name] = row["annotation"] if not row["group"].startswith("extras") else ""
    return shown


def find_named(index: qmd.Index, shown: dict[str, str], count: int) -> dict[str, float]:
    """The rank of a picture that is called what was asked for, spread over all of them; 0: not among ten."""
    named = [(file, label) for file, label in shown.items() if label]
    ranks = []
    for file, label in named[:: max(1, len(named) // count)][:count]:
        hits = index.query(label, limit=10)
        right = [n for n, hit in enumerate(hits, start=1) if shown.get(hit.path) == label or hit.path == file]
        ranks.append(right[0] if right else 0)
    return {
        "named": len(ranks),
        "first": 100 * sum(r == 1 for r in ranks) / len(ranks),
        "first_three": 100 * sum(1 <= r <= 3 for r in ranks) / len(ranks),
        "first_ten": 100 * sum(r > 0 for r in ranks) / len(ranks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("assets", type=Path)
    parser.add_argument("--keep", type=Path, help="keep the index here, and use it again")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--named", type=int, default=200)
    given = parser.parse_args()
    documents, queries, relevant = read_beir(given.folder)
    with tempfile.TemporaryDirectory() as scratch:
        place = given.keep or Path(scratch)
        index, ids = build(documents, place, Config())
        if any(c.name == "pictograms" for c in index.list_collections()):
            index.remove_collection("pictograms")
        before = ask(index, queries, ids, relevant)
        shown = draw(given.assets, place / "pictograms", given.pictures)
        start = time.perf_counter()
        report = index.add(place / "pictograms")
        indexing_s = time.perf_counter() - start
        after = ask(index, queries, ids, relevant)
        named = find_named(index, shown, given.named)
        seen = report.embed.pictures if report.embed else None
        index.close()
    record = {
        "collection": given.folder.name,
        "pictures": len(shown),
        "before": before,
        "after": after,
        "named": named,
        "indexing_s": indexing_s,
        "looking_s": seen.seconds if seen else None,
    }
    print("| | nDCG@10 | questions with a picture in ten | median ms |\n| --- | ---: | ---: | ---: |")
    for name, figures in (("texts alone", before), (f"with {len(shown):,} pictograms", after)):
        seen_in = f"{figures['questions_with_a_picture']} of {figures['questions']}"
        print(f"| {name} | {figures['ndcg10']:.2f} | {seen_in} | {figures['median_ms']:.0f} |")
    shares = ", ".join(f"{key} {named[key]:.1f} %" for key in ("first", "first_three", "first_ten"))
    print(f"\nof {named['named']} names: {shares}")
    append_result("pictures", record, ("onnxruntime", "pillow"))


if __name__ == "__main__":
    main()
