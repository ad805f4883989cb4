"""Build the benchmark corpus: 20,000 real text files (Markdown, reStructuredText, man pages), about 115 MB.

The files come from Debian and npm packages, fetched with `apt-get download` and `npm install`; nothing is
installed on the system. The choice is by the digest of each file's path, so that two runs over the same
packages give the same corpus.

    python benchmarks/corpus.py FOLDER
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

DEBIAN = [
    "linux-doc-6.1",
    "python3.11-doc",
    "python-django-doc",
    "manpages",
    "manpages-dev",
    "manpages-ja",
    "manpages-ja-dev",
    "manpages-zh",
    "perl-doc",
    "tcl8.6-doc",
    "freebsd-manpages",
    "libssl-doc",
    "glibc-doc",
    "erlang-manpages",
    "manpages-de",
    "manpages-de-dev",
    "manpages-fr",
    "manpages-fr-dev",
    "manpages-es",
    "manpages-pl",
    "manpages-pt-br",
    "manpages-ro",
    "ncurses-doc",
    "manpages-it",
    "manpages-nl",
    "manpages-da",
    "manpages-ru",
    "manpages-uk",
    "libx11-doc",
    "libcurl4-doc",
    "openmpi-doc",
    "mpich-doc",
    "tk8.6-doc",
    "postgresql-doc-15",
]
NPM = [
    "gatsby@5.14.0",
    "@docusaurus/core@3.6.3",
    "@docusaurus/preset-classic@3.6.3",
    "react-native@0.76.5",
    "webpack@5.97.1",
    "eslint@8.57.1",
    "jest@29.7.0",
    "lerna@8.1.9",
    "firebase@11.1.0",
    "aws-sdk@2.1692.0",
    "googleapis@144.0.0",
    "@storybook/react@8.4.7",
    "@angular/cli@19.0.6",
    "vite@6.0.5",
    "mermaid@11.4.1",
]
FILES = 20_000
BYTES = 118_000_000
LARGEST = 28_000


def fetch_packages(folder: Path) -> None:
    """Download and unpack every package below `folder`; what is there already is kept."""
    debian, npm = folder / "debian", folder / "npm"
    debian.mkdir(parents=True, exist_ok=True)
    npm.mkdir(parents=True, exist_ok=True)
    for name in DEBIAN:
        if not (debian / name).is_dir():
            with tempfile.TemporaryDirectory() as download:
                subprocess.run(["apt-get", "download", "-qq", name], cwd=download, check=True)
                archive = next(Path(download).glob("*.deb"))
                subprocess.run(["dpkg", "-x", str(archive), str(debian / name)], check=True)
    if not (npm / "node_modules").is_dir():
        (npm / "package.json").write_text('{"private": true}')
        flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--legacy-peer-deps", "--silent"]
        subprocess.run(["npm", "install", *flags, *NPM], cwd=npm, check=True)


def text_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every usable file as (name in the corpus, where it is)."""
    for path in folder.rglob("*"):
        name = path.name.removesuffix(".gz")
        if not path.is_file() or path.is_symlink():
            continue
        relative = path.relative_to(folder).with_name(name)
        if name.endswith(".rst.txt"):
            relative = relative.with_suffix("")
        suffix = relative.suffix.lower()
        manual = "man" in relative.parts and suffix[1:2].isdigit()
        if suffix in {".md", ".rst"} or manual:
            # Indexers pass over folders of dependencies by their name; here they are the text.
            yield str(relative).replace("node_modules", "modules"), path


def build_corpus(packages: Path, corpus: Path) -> tuple[int, int]:
    """Copy the chosen files as plain UTF-8 text. Returns (files, bytes)."""
    found = sorted(text_files(packages), key=lambda item: hashlib.sha256(item[0].encode()).digest())
    # Markdown is the scarcest kind and the one people write: all of it comes first.
    found.sort(key=lambda item: not item[0].endswith(".md"))
    seen: set[bytes] = set()
    files = total = 0
    for name, path in found:
        data = path.read_bytes()
        try:
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            data.decode("utf-8")
        except (UnicodeDecodeError, gzip.BadGzipFile):
            continue
        digest = hashlib.sha256(data).digest()
        if len(data) < 200 or len(data) > LARGEST or digest in seen or total + len(data) > BYTES:
            continue
        seen.add(digest)
        target = corpus / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        files, total = files + 1, total + len(data)
        if files == FILES:
            break
    return files, total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where packages and corpus go")
    folder = parser.parse_args().folder.resolve()
    corpus = folder / "corpus"
    if corpus.exists():
        sys.exit(f"{corpus} exists already: remove it to build it again.")
    fetch_packages(folder / "packages")
    files, total = build_corpus(folder / "packages", corpus)
    print(f"{corpus}: {files} files, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
