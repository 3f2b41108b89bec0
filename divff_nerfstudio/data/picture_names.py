"""What pictures are called: systems write one name in several ways, and addresses in yet another."""

from __future__ import annotations

import unicodedata
from urllib.parse import unquote


def decoded(name: str) -> str:
    """A name without what addresses put in place of letters, such as ``%20`` of a space, whose digits count nothing."""
    return unquote(name)


def alike(name: str) -> str:
    """Equal for names that are one on a Mac, on Windows or in an address: accents in one or two characters, capitals or
    none, spaces as ``%20``."""
    return unicodedata.normalize("NFC", decoded(name)).casefold()
