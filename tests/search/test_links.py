"""The link graph, and documents like a document."""

import unicodedata

import pytest

from qmd.errors import NotFound, UsageError

VAULT = {
    "a.md": "# Alpha\n\n[[beta note]] and [md](sub/c.md) and [[nowhere]] and [web](https://x.example/).\n",
    "beta note.md": "---\naliases: [Second letter]\n---\n# Beta\n\nBack to [[a|the first]].\n",
    "sub/c.md": "# Gamma\n\nUp to [a](../a.md), [b](../beta%20note.md) and [[Second letter#Part]].\n",
    "sub/a.md": "# Another a\n\nSee [[a]].\n",
    "日本/桜.md": "# 桜\n\n春。\n",
    "ja.md": "# List\n\n[桜](%E6%97%A5%E6%9C%AC/%E6%A1%9C.md) と [[桜]]\n",
}


def ends(places):
    return [(place.file.removeprefix("qmd://notes/"), place.line) for place in places]


def test_out_in_and_broken(build):
    index = build(VAULT)
    links = index.links("a.md", limit=0)
    assert ends(links.out) == [("beta note.md", 3), ("sub/c.md", 3)]
    assert [place.target for place in links.broken] == ["nowhere"]
    assert ends(links.into) == [("beta note.md", 6), ("sub/c.md", 3)]
    beta = index.links("beta note.md", limit=0)
    assert ends(beta.into) == [("a.md", 3), ("sub/c.md", 3), ("sub/c.md", 3)]
    assert beta.broken == ()


def test_a_plain_name_means_the_nearest_file(build):
    index = build(VAULT)
    assert ends(index.links("sub/a.md", limit=0).out) == [("sub/a.md", 3)]


def test_names_in_other_scripts(build):
    index = build(VAULT)
    links = index.links("日本/桜.md", limit=0)
    assert ends(links.into) == [("ja.md", 3), ("ja.md", 3)]
    assert index.links("ja.md", limit=0).broken == ()


@pytest.mark.parametrize(("on_disk", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_characters_of_a_name_may_be_composed_or_not(build, on_disk, written):
    """A Mac decomposes those of its file names."""
    name = unicodedata.normalize(on_disk, "café.md")
    said = unicodedata.normalize(written, "café")
    index = build(
        {name: "# Coffee\n\nBeans.\n", "b.md": f"See [[{said}]] and [x]({said}.md).\n"}, embed=False
    )
    links = index.links("b.md", limit=0)
    assert ends(links.out) == [(name, 1), (name, 1)]
    assert links.broken == ()
    assert ends(index.links(name, limit=0).into) == [("b.md", 1), ("b.md", 1)]
    assert [entry.path for entry in index.ls(f"notes/{said}*")] == [name]


def test_near_notes_without_a_link_are_suggested(build):
    words = "sourdough starter flour water oven crust"
    index = build(
        {
            "bread.md": f"# Bread\n\n{words}. See [[rye]].\n",
            "rye.md": f"# Rye\n\n{words} rye.\n",
            "pizza.md": f"# Pizza\n\n{words} tomato.\n",
            "tax.md": "# Tax\n\nForms and receipts.\n",
        }
    )
    links = index.links("bread.md", limit=1)
    assert [hit.path for hit in links.similar] == ["pizza.md"]
    assert [hit.path for hit in index.similar("bread.md", limit=2)] == ["rye.md", "pizza.md"]
    assert index.similar("bread.md")[0].score > index.similar("bread.md")[-1].score


def test_links_without_vectors_say_so(build):
    links = build(VAULT, embed=False).links("a.md")
    assert links.similar == ()
    assert "qmd embed" in links.degraded[0]


def test_similar_to_a_file_outside(build, tmp_path):
    index = build(VAULT)
    draft = tmp_path / "draft.md"
    draft.write_text("# Gamma\n\nUp to the letter.\n")
    assert index.similar(draft, limit=1)[0].path == "sub/c.md"
    with pytest.raises(NotFound, match="no document is called"):
        index.similar("nothing.md")
    (tmp_path / "empty.md").write_text("")
    with pytest.raises(UsageError, match="no text"):
        index.similar(tmp_path / "empty.md")


def test_similar_keeps_to_the_condition(build):
    index = build(VAULT)
    assert {hit.path for hit in index.similar("a.md", path="sub/*")} == {"sub/c.md", "sub/a.md"}
