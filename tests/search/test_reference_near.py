"""A name that is not there: the nearest ones are offered, quickly."""

from __future__ import annotations

import difflib
import time

import pytest

from qmd.search import reference


class Names:
    def __init__(self, names):
        self.documents = self
        self._names = [tuple(name.split("/", 1)) for name in names]

    def names(self):
        return self._names


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("qmd://notes/kitchen/sourdouhg.md", "qmd://notes/kitchen/sourdough.md"),
        ("sourdough.txt", "qmd://notes/kitchen/sourdough.md"),
        ("SOURDOUGH.md", "qmd://notes/kitchen/sourdough.md"),
        ("note/kitchen/sourdough", "qmd://notes/kitchen/sourdough.md"),
        ("club/minutes-2024-05.md", "qmd://club/minutes/2024-05.md"),
    ],
)
def test_the_nearest_name_is_offered(wanted, near):
    store = Names(["notes/kitchen/sourdough.md", "notes/kitchen/soup.md", "club/minutes/2024-05.md"])
    assert near in reference._near(store, wanted)


def test_nothing_is_near_to_nonsense():
    assert "Run `qmd ls`" in reference._near(Names(["notes/a.md"]), "zzzzqqqq")
    assert "empty" in reference._near(Names([]), "zzzzqqqq")


def test_among_thousands_it_finds_what_comparing_all_of_them_finds():
    names = [f"notes/folder-{i % 40}/letter-{i * 7919 % 20011:05d}.md" for i in range(20_000)]
    begin = time.process_time()
    said = reference._near(Names(names), "notes/folder-3/lettre-00042.md")
    spent = time.process_time() - begin
    whole = difflib.get_close_matches("lettre-00042.md", [n.rsplit("/")[-1] for n in names], n=1)
    assert whole[0] in said
    assert spent < 0.5  # comparing all takes several times as long
