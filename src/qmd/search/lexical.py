"""The keyword list: from a Query to ranked chunks. Writes FTS5 expressions; the store runs them.

Two orders are made. `find_best` is BM25 over any of the words (OR), what fusion wants. `find_all_first` puts the
chunks with every word (AND) before those with some, what a person who typed three words wants. Neither dead-ends:
a word that the index does not have is replaced by its nearest spellings, and `notes` says so.

Words with many postings are ranked from memory (`KeywordIndex.rank`), with the same scores. Of a long question, words
that stand in more than half of all chunks are left out of the sum, where BM25 gives them no weight; there is no stop
list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qmd.search.query import Query, Term
from qmd.store.cjk import has_cjk, index_text
from qmd.types import Filter

POSTINGS = 4_000
"""Up to so many postings FTS5 ranks any of the words itself; beyond, they are ranked from memory."""
KEPT_WHEN_ASKED_TWICE = 30_000
"""Words that must all be there are ranked from memory from the second time on, if their postings are no more."""
WEIGHTLESS_SHARE = 0.5
"""Words in more than this share of all chunks are not summed up: BM25 gives them no weight (log((N - n) / n) < 0)."""
HEAVY_WORDS = 3
"""So many words are summed up however common they are."""
COMMON_SHARE = 0.25
"""Words in more than this share of all chunks need not all be there (AND), if others are asked for."""
SPELLING_LETTERS = 5
SPELLINGS = 3
MOST_RESPELLED = 16
"""Looking for the spellings near to a word reads the whole vocabulary: a pasted text has hundreds of unknown words."""

Ranked = list[tuple[int, float]]
"""(chunk id, BM25), best first."""


class KeywordIndex(Protocol):
    """What this room asks of the store's keyword index."""

    def match(self, expression: str, filter: Filter = ..., limit: int = ...) -> list[tuple[int, float]]: ...
    def candidates(self, expression: str, filter: Filter = ..., limit: int = ...) -> list[int]: ...
    def score_among(self, expression: str, ids: Sequence[int]) -> list[tuple[int, float]]: ...
    def rank(
        self,
        expressions: Sequence[str],
        filter: Filter = ...,
        limit: int = ...,
        *,
        every: bool = ...,
        without: str | None = ...,
    ) -> list[tuple[int, float]]: ...
    def keeps(self, expressions: Sequence[str]) -> bool: ...
    def asked_before(self, expressions: Sequence[str]) -> bool: ...
    def document_frequency(self, terms: Iterable[str]) -> dict[str, int]: ...
    def near_terms(self, word: str, limit: int = ...) -> list[str]: ...
    def count(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Atom:
    """A piece of an FTS5 expression. `word` is what its frequency is looked up by; None: a phrase or a
    prefix. joined: a word or number with the one character behind it (`5月`), left out where no chunk has it.
    """

    expression: str
    word: str | None
    frequency: int = 0
    joined: bool = False


@dataclass(frozen=True, slots=True)
class KeywordList:
    """(chunk id, BM25) best first. The first `complete` have every word. `notes` are for `degraded`."""

    ranked: list[tuple[int, float]]
    complete: int = 0
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    pruned: bool = False
    atoms: tuple[tuple[str, int], ...] = ()
    """(expression, chunks that hold it) of what was looked for; `missing`: how many words the index does not have."""
    missing: int = 0


def find_best(index: KeywordIndex, query: Query, limit: int) -> KeywordList:
    """BM25 over any of the words."""
    strict, loose, notes, words, missing = _prepare(index, query)
    if not strict:
        return KeywordList([], notes=notes)
    ranked, pruned = _rank_any(index, loose, _exclusion(query), query.filter, limit)
    quoted = required(index, query)
    if quoted:
        holding = {chunk for chunk, _ in index.score_among(quoted, [chunk for chunk, _ in ranked])}
        ranked = [item for item in ranked if item[0] in holding] or index.match(quoted, query.filter, limit)
    return KeywordList(ranked, 0, notes, words, pruned, _weighed(query, loose), missing)


def find_all_first(
    index: KeywordIndex,
    query: Query,
    limit: int,
    enough: Callable[[Ranked], bool] | None = None,
    *,
    spell: bool = True,
) -> KeywordList:
    """Chunks with every word and phrase by BM25, then those with some by BM25, up to `limit`.

    Those with some are looked for only if those with every word are not `enough` (default: `limit` of them). spell:
    whether a word that the index does not have is replaced by its nearest spellings.
    """
    strict, loose, notes, words, missing = _prepare(index, query, spell=spell)
    if not strict:
        return KeywordList([], notes=notes)
    exclusion = _exclusion(query)
    if query.required and required(index, query) is None:
        notes = (*notes, "keyword: no passage has what was quoted; these have some of the words")
    needed = strict
    floor = max(POSTINGS / 4, index.count() * COMMON_SHARE)
    if any(atom.frequency > floor for atom in strict):
        needed = [atom for atom in strict if atom.frequency <= floor] or strict[:1]
    ranked = _rank_all(index, needed, exclusion, query.filter, limit)
    complete, pruned = len(ranked), False
    satisfied = len(ranked) >= limit or (enough is not None and enough(ranked))
    if not satisfied and loose and not (len(needed) == 1 and loose == needed):
        rest, pruned = _rank_any(index, loose, exclusion, query.filter, limit)
        seen = {chunk for chunk, _ in ranked}
        quoted = required(index, query)
        if quoted:
            holding = {chunk for chunk, _ in index.score_among(quoted, [chunk for chunk, _ in rest])}
            rest = [item for item in rest if item[0] in holding]
        ceiling = ranked[-1][1] if ranked else float("inf")
        ranked += [(chunk, min(score, ceiling)) for chunk, score in rest if chunk not in seen]
    complete = min(complete, limit)
    return KeywordList(ranked[:limit], complete, notes, words, pruned, _weighed(query, loose), missing)


def _weighed(query: Query, atoms: Sequence[Atom]) -> tuple[tuple[str, int], ...]:
    """What counts for a document: words, and phrases that were quoted. Words written as one (`a-b`) count once, not
    as a phrase too."""
    joined = {
        _phrase(term) for term in query.terms if len(term.words) > 1 and not term.quoted and not term.prefix
    }
    return tuple((atom.expression, atom.frequency) for atom in atoms if atom.expression not in joined)


def _prepare(
    index: KeywordIndex, query: Query, *, spell: bool = True
) -> tuple[list[Atom], list[Atom], tuple[str, ...], tuple[str, ...], int]:
    """Atoms for AND, atoms for OR, notes, the words to mark in a text, and how many the index does not have."""
    strict = list(dict.fromkeys(atom for term in query.terms for atom in _strict(term)))
    loose = list(dict.fromkeys(atom for term in query.terms for atom in _loose(term)))
    if not strict:
        return [], [], (("keyword: only exclusions, nothing to look for",) if query.excluded else ()), (), 0
    joined = {
        atom: len(index.candidates(atom.expression, Filter(), POSTINGS)) for atom in loose if atom.joined
    }
    strict = [atom for atom in strict if joined.get(atom, 1)]
    loose = [atom for atom in loose if joined.get(atom, 1)]
    frequency = index.document_frequency(atom.word for atom in (*strict, *loose) if atom.word)
    notes: list[str] = []
    spelled: dict[str, list[str]] = {}
    unknown = dict.fromkeys(atom.word for atom in loose if atom.word and not frequency[atom.word])
    strange = [word for word in unknown if len(word) >= SPELLING_LETTERS and not has_cjk(word)]
    for word in strange[:MOST_RESPELLED] if spell else ():
        near = [term for term in index.near_terms(word, SPELLINGS) if term != word]
        if near:
            spelled[word] = near
            notes.append(f"keyword: {word!r} is not in the index; searched for {' or '.join(near)}")
    if spelled:
        frequency |= index.document_frequency(term for near in spelled.values() for term in near)

    def settle(atoms: list[Atom]) -> list[Atom]:
        out: list[Atom] = []
        for atom in atoms:
            near = spelled.get(atom.word or "")
            if near:
                either = " OR ".join(f'"{term}"' for term in near)
                out.append(Atom(f"({either})", atom.word, sum(frequency[term] for term in near)))
            else:
                # A phrase or prefix is as frequent as nothing says otherwise: it always takes part.
                known = frequency[atom.word] if atom.word else joined.get(atom, 1)
                out.append(Atom(atom.expression, atom.word, known))
        return out

    settled = settle(loose)
    found = [atom for atom in settled if atom.frequency]
    words = [w for atom in loose for w in spelled.get(atom.word or "", [atom.word or _shown(atom)])]
    return settle(strict), found, tuple(notes), tuple(dict.fromkeys(words)), len(settled) - len(found)


def _tokens(word: str, *, whole: bool = True) -> list[str]:
    """What the index holds for a word: itself, or a CJK run's bigrams. The last character of a run of two or more,
    which the index holds alone too, is left out at the end (`whole`) so that a longer run matches as well."""
    if not has_cjk(word):
        return [word]
    tokens = index_text(word).split()
    ends_run = whole and len(tokens) > 1 and _is_character(tokens[-1]) and has_cjk(tokens[-2])
    return tokens[:-1] if ends_run else tokens


def _is_character(token: str) -> bool:
    return len(token) == 1 and has_cjk(token)


def _shown(atom: Atom) -> str:
    text = atom.expression.strip('"* ')
    return text.replace(" ", "") if atom.joined else text


def _quote(tokens: Sequence[str], *, prefix: bool = False) -> str:
    """A phrase. One CJK character at its end may go on: the index holds it with the next."""
    alone = _is_character(tokens[-1])
    return '"' + " ".join(tokens).replace('"', "") + ('" *' if prefix or alone else '"')


def _phrase(term: Term) -> str:
    tokens = [token for word in term.words[:-1] for token in _tokens(word, whole=False)]
    return _quote([*tokens, *_tokens(term.words[-1])], prefix=term.prefix)


def _strict(term: Term) -> list[Atom]:
    if term.phrase or term.prefix:
        return [Atom(_phrase(term), None)]
    return _pieces(term.words[0])


def _loose(term: Term) -> list[Atom]:
    """A phrase is looked for as itself and word by word."""
    out = [Atom(_phrase(term), None)] if term.phrase or term.prefix else []
    for word in term.words[:-1] if term.prefix else term.words:
        out += _pieces(word)
    return out


def _pieces(word: str) -> list[Atom]:
    tokens = _tokens(word)
    out = [Atom(_quote([token]), token) for token in tokens if not _is_character(token)]
    if out and _is_character(tokens[-1]):
        out.append(Atom(_quote(tokens[-2:]), None, joined=True))
    return out or [Atom(_quote(tokens), None)]


def required(index: KeywordIndex, query: Query) -> str | None:
    """An expression for what was quoted: hits must hold it, so long as some passage does."""
    if not query.required:
        return None
    expression = " AND ".join(map(_phrase, query.required))
    return expression if index.candidates(f"({expression}){_exclusion(query)}", query.filter, 1) else None


def exclusions(query: Query) -> list[str]:
    """An FTS5 expression for each thing that must not be there."""
    return [_phrase(term) for term in query.excluded]


def _exclusion(query: Query) -> str:
    unwanted = " OR ".join(exclusions(query))
    return f" NOT ({unwanted})" if unwanted else ""


def _unsigned(exclusion: str) -> str | None:
    return exclusion.removeprefix(" NOT ") or None


def _rank_all(
    index: KeywordIndex, atoms: Sequence[Atom], exclusion: str, filter: Filter, limit: int
) -> Ranked:
    """(chunk id, BM25 over all atoms) of chunks that have every atom, best first."""
    pieces = [atom.expression for atom in atoms]
    again = index.asked_before(pieces)
    few = sum(atom.frequency for atom in atoms) <= KEPT_WHEN_ASKED_TWICE
    if index.keeps(pieces) or (again and few and all(atom.word for atom in atoms)):
        return index.rank(pieces, filter, limit, every=True, without=_unsigned(exclusion))
    return index.match(f"({' AND '.join(pieces)}){exclusion}", filter, limit)


def _rank_any(
    index: KeywordIndex, atoms: Sequence[Atom], exclusion: str, filter: Filter, limit: int
) -> tuple[Ranked, bool]:
    """(chunk id, BM25 over any atom), best first; and whether very common words were left out."""
    atoms = sorted(atoms, key=lambda atom: atom.frequency)
    if sum(atom.frequency for atom in atoms) <= POSTINGS:
        if not atoms:
            return [], False
        everything = " OR ".join(atom.expression for atom in atoms)
        return index.match(f"({everything}){exclusion}", filter, limit), False
    weightless = index.count() * WEIGHTLESS_SHARE
    heavy = [atom for i, atom in enumerate(atoms) if i < HEAVY_WORDS or atom.frequency <= weightless]
    pieces = [atom.expression for atom in heavy]
    return index.rank(pieces, filter, limit, without=_unsigned(exclusion)), len(heavy) < len(atoms)
