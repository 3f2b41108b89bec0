"""Questions that were typed badly."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

_MIN_LETTERS = 4
_ALIKE = 0.75
_WORD = re.compile(r"[^\W\d_]+")


def respelled(phrase: str, known: Sequence[str]) -> str | None:
    """A phrase with its unknown words replaced by known ones that are spelled nearly so.

    Args:
        phrase: What was typed.
        known: Phrases whose words are known.

    Returns:
        The phrase as it may have been meant; None if nothing in it looks like a slip.
    """
    words = {word for text in known for word in _WORD.findall(text.lower())}
    candidates = sorted(word for word in words if len(word) >= _MIN_LETTERS - 1)

    def mended(found: re.Match[str]) -> str:
        word = found[0].lower()
        singular = {word, word.removesuffix("s"), word.removesuffix("es")}
        plural = set() if word.endswith("s") else {f"{word}s"}
        if len(word) < _MIN_LETTERS or (singular | plural) & words:
            return found[0]
        # A slip seldom is in the first letter, and a word with more or fewer of them is another one.
        alike = [other for other in candidates if other[0] == word[0] and abs(len(other) - len(word)) <= 1]
        near = difflib.get_close_matches(word, alike, n=1, cutoff=_ALIKE)
        return near[0] if near else found[0]

    meant = _WORD.sub(mended, phrase)
    return None if meant == phrase else meant
