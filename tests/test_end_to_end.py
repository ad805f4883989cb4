"""The main job, as a person does it: index the sample vault, find known notes by command, in 3 languages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[1]
VAULT = REPO / "examples" / "vault"

Qmd = Callable[..., str]


@pytest.fixture(scope="module")
def qmd(tmp_path_factory: pytest.TempPathFactory) -> Qmd:
    """`qmd` in a home folder of its own, with the vault indexed."""
    home = tmp_path_factory.mktemp("home")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QMD_", "XDG_"))}
    env = {**kept, "HOME": str(home), "PYTHONPATH": str(REPO / "src"), "HF_HUB_OFFLINE": "1"}

    def run(*arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "qmd", *arguments],
            env=env,
            cwd=home,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == expect, f"qmd {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    run("add", str(VAULT), "--name", "vault")
    return run


def files(qmd: Qmd, *arguments: str) -> list[str]:
    hits: list[dict[str, Any]] = json.loads(qmd(*arguments, "--json"))
    return [hit["file"].removeprefix("qmd://vault/") for hit in hits]


KEYWORD = [
    ("blossom-end rot", "garden/tomatoes.md"),
    ("fsync directory", "work/storing time series.md"),
    ("Manteigaria", "travel/lisbon.md"),
    ("enspc ENOSPC", "work/2026-04-22 ingest outage.md"),
    ("如何设置文件权限", "linux/文件权限.md"),
    ("怎样分配内存", "linux/内存分配.md"),
    ("郫县豆瓣酱", "kitchen/麻婆豆腐.md"),
    ("先天下之忧而忧", "library/岳阳楼记.md"),
    ("遺世獨立", "library/前赤壁賦.md"),
    ("ファイルの権限を変更する方法", "linux/ファイルの権限.md"),
    ("犍陀多", "library/蜘蛛の糸.md"),
    ("昆布とかつお節", "kitchen/出汁の取り方.md"),
    ("警戒水位", "work/meetings/2026-05-12 定例会議.md"),
    ("rolling_median", "code/rolling_median.py"),
    ("landlord", "home/lease.html"),
    ("rubble sack", "travel/packing.org"),
    ("guest network fridge", "home/router.rst"),
    ("hydrograph", "code/hydrograph.ipynb"),
    ("unalienable rights", "library/declaration-of-independence.txt"),
    ("Shimokikubashi", "work/gauges.csv"),
    ("Iosevka", "code/editor-settings.json"),
]


@pytest.mark.parametrize(("query", "expected"), KEYWORD)
def test_keyword(qmd: Qmd, query: str, expected: str) -> None:
    assert expected in files(qmd, "search", query, "-n", "3")


# Few or no words in common with the note. The embedded model was trained on English.
MEANING = [
    ("my leg hurts when I walk downhill", "health/knee.md"),
    ("how quickly do giant reptiles move", "library/darwin-tortoises.md"),
    ("my bread comes out heavy and wet inside", "kitchen/sourdough.md"),
    ("giving up the apartment: how early must I tell the owner", "home/lease.html"),
    ("plants with rotten fruit", "garden/tomatoes.md"),
    ("someone knocking at night frightens a grieving man", "library/the-raven.md"),
]


@pytest.mark.parametrize(("query", "expected"), MEANING)
def test_meaning(qmd: Qmd, query: str, expected: str) -> None:
    assert files(qmd, "vsearch", query, "-n", "3")[0] == expected


HYBRID = [
    ("why were samples missing when the server ran out of space", "work/2026-04-22 ingest outage.md"),
    ("how do I renew my passport", "daily/2026-05-09.md"),
    ("exercises for a sore kneecap", "health/knee.md"),
    ("晚上总是醒，睡不着怎么办", "health/睡眠记录.md"),
    ("带妈妈去京都怎么安排", "travel/京都三日.md"),
    ("备份多久恢复一次", "linux/备份.md"),
    ("花粉の薬はいつから飲むか", "health/花粉症.md"),
    ("ぬか床が酸っぱい", "kitchen/ぬか床の手入れ.md"),
    ("百年待っていて下さい", "library/夢十夜・第一夜.md"),
]


@pytest.mark.parametrize(("query", "expected"), HYBRID)
def test_hybrid(qmd: Qmd, query: str, expected: str) -> None:
    assert expected in files(qmd, "query", query, "-n", "3")


def test_templates_are_left_out(qmd: Qmd) -> None:
    assert "qmd://vault/templates/daily.md" not in qmd("ls", "vault")


def test_a_hit_leads_to_its_lines(qmd: Qmd) -> None:
    hit = json.loads(qmd("search", "blossom-end rot", "-n", "1", "--json"))[0]
    line = (VAULT / "garden/tomatoes.md").read_text(encoding="utf-8").splitlines()[hit["line"] - 1]
    shown = json.loads(qmd("get", f"{hit['file']}:{hit['line']}:1", "--json"))
    assert shown["body"].strip() == line.strip()


def test_filters_reach_into_the_query(qmd: Qmd) -> None:
    found = files(qmd, "search", "Kingfisher", "--tag", "work/meeting", "--all")
    assert found
    assert all(file.startswith("work/meetings/") for file in found)
    assert files(qmd, "search", "内存", "--path", "linux/*", "-n", "3")[0].startswith("linux/")


def test_adding_again_changes_nothing(qmd: Qmd) -> None:
    report = json.loads(qmd("add", str(VAULT), "--name", "vault", "--json"))
    assert "added" in json.dumps(report)
    assert "qmd://vault/Home.md" in qmd("ls", "vault")
