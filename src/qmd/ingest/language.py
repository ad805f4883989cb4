"""Guess the language of a text: by script, and by common words among languages in Latin letters. Cheap, not clever."""

from __future__ import annotations

import re

SAMPLE = 1000

_WORDS = {
    "en": "the and of to in is that for it with as are this be on not you can by from or an if will which",
    "de": "der die das und ist nicht ein eine mit für auf von zu den dem des sich auch werden wird oder wenn",
    "fr": "le la les des et est une un pour dans que qui ne pas sur avec ce par plus sont au du vous cette",
    "es": "el la los las de y es una un para en que por con no se del al como más su este son está",
    "it": "il lo la gli di e è una un per in che con non si del della sono come più questo nel alla",
    "pt": "o os as de e é uma um para em que por com não se do da como mais são este seu na no",
    "nl": "de het een en van is niet met voor op dat die zijn te aan ook worden wordt als deze of bij",
    "sv": "och att det som en är av för på med den till inte har om ett kan eller från",
    "pl": "i w na z do nie jest się że to dla jak przez od po lub oraz który może są",
}
_SETS = {lang: frozenset(words.split()) for lang, words in _WORDS.items()}
_SCRIPTS = re.compile(
    r"([぀-ヿㇰ-ㇿｦ-ﾟ]+)|([가-힯ᄀ-ᇿ]+)|([㐀-䶿一-鿿豈-﫿]+)|([Ѐ-ӿ]+)|([Ͱ-Ͽ]+)|([\u0590-\u05ff]+)|([\u0600-\u06ff]+)"
    r"|([\u0900-\u097f]+)|([\u0e00-\u0e7f]+)"
)
_OTHER_SCRIPT = re.compile("[\u0370-\u052f\u0590-\u06ff\u0900-\u097f\u0e00-\u0e7f\u1100-\u11ff\u3040-\uffef]")
_NAMES = ("ja", "ko", "zh", "ru", "el", "he", "ar", "hi", "th")
_UKRAINIAN = re.compile("[іїєґІЇЄҐ]")


def detect_language(text: str) -> str:
    """ISO 639-1 code of the main language of a text, or "" where it does not show."""
    sample = text[:SAMPLE]
    if not sample.isascii() and _OTHER_SCRIPT.search(sample):
        counts = [0] * len(_NAMES)
        for match in _SCRIPTS.finditer(sample):
            counts[(match.lastindex or 1) - 1] += match.end() - match.start()
        kana, hangul, han = counts[:3]
        total = sum(counts)
        # an ideograph or a kana says as much as two or three letters
        if total and (total + kana + hangul + han) * 3 >= sum(map(str.isalpha, sample)):
            if kana * 12 >= kana + han and kana and kana + han >= max(counts[3:]) and kana + han >= hangul:
                return "ja"
            best = max(range(len(counts)), key=counts.__getitem__)
            return "uk" if best == 3 and _UKRAINIAN.search(sample) else _NAMES[best]
    words = sample.lower().split()
    distinct = set(words)
    english = len(distinct & _SETS["en"])
    if english >= 5:
        return "en"
    best_lang, best_count = "en", english
    for lang, common in _SETS.items():
        count = len(distinct & common)
        if count > best_count:
            best_lang, best_count = lang, count
    return best_lang if best_count >= 2 else ""
