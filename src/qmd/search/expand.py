"""Expansion without a model: words that the best passages share (after RM3, Lavrenko and Croft 2001), and nearness to
those passages. Knows texts and counts only.

Both order the documents that were found; they look for no others, which would cost more than it gave. Only long
questions gain (`FEWEST_WORDS`): what a title-like query means is said, and more words lead away from it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log

from qmd.store.cjk import has_cjk

FEEDBACK_PASSAGES = 3
"""Passages that are read for expansion; 0 switches it off."""
FEEDBACK_WEIGHT = 0.3
"""Weight of the match with these words, against 1 of the question's own."""
NEIGHBOUR_DOCUMENTS = 3
"""Best documents whose neighbours in the embedding space count more; 0 switches it off."""
NEIGHBOUR_WEIGHT = 0.15
"""Weight of the nearness to them, against 1 of the nearness to the question."""
FEEDBACK_WORDS = 20
FEWEST_WORDS = 8
"""Questions of fewer words are not expanded."""
MOST_POSTINGS = 1_000
"""Words in more chunks than this cost more than they say."""
LOOKED_UP = 120
_WORD = re.compile(r"[^\W\d_]{3,}")


def feedback(
    words: Sequence[str],
    passages: Sequence[str],
    document_frequency: Callable[[Iterable[str]], Mapping[str, int]],
    stem: Callable[[Iterable[str]], Mapping[str, Sequence[str]]],
    count: int,
) -> list[tuple[str, int]]:
    """(word, chunks that hold it) to match beside `words`, best first; empty: not worth it.

    passages: texts of the best passages, best first; document_frequency: word -> chunks that hold it, of `count`;
    stem: word -> the index's terms for it.
    """
    if len(words) < FEWEST_WORDS or any(has_cjk(word) for word in words):
        return []
    told: dict[str, float] = defaultdict(float)
    for passage in passages:
        found = [word.lower() for word in _WORD.findall(passage) if not has_cjk(word)]
        for word in found:
            told[word] += 1 / len(found)
    likely = sorted(told, key=lambda word: (-told[word], word))[:LOOKED_UP]
    terms = stem([*likely, *words])
    asked = {term for word in words for term in terms.get(word, ())}
    share: dict[str, float] = defaultdict(float)
    spelled: dict[str, str] = {}
    for word in likely:
        if len(terms.get(word, ())) == 1 and terms[word][0] not in asked:
            share[terms[word][0]] += told[word]
            spelled.setdefault(terms[word][0], word)
    frequency = document_frequency(spelled.values())
    weighed = {
        spelled[term]: told_share * _rarity(frequency.get(spelled[term], 0), count)
        for term, told_share in share.items()
        if 1 < frequency.get(spelled[term], 0) <= MOST_POSTINGS
    }
    best = sorted(weighed, key=lambda word: (-weighed[word], word))[:FEEDBACK_WORDS]
    return [(word, frequency[word]) for word in best]


def _rarity(frequency: int, count: int) -> float:
    return log(1 + (max(count, frequency) - frequency + 0.5) / (frequency + 0.5))
