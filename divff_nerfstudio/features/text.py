"""The text encoder that speaks the language of a store's features, built from the store's header."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jaxtyping import Float
from torch import Tensor

from divff_nerfstudio.features.encoders import EncoderError, load_encoder


class TextEncoder:
    """Turns phrases into embeddings that a store's features are compared with.

    Args:
        entry: "text_encoder" of a store's header: "encoder" (its name), "fingerprint" of its weights, and whether to
            "normalise" embeddings to unit length (they are, unless it says otherwise).

    Raises:
        EncoderError: If the encoder is not to be had, or is not the one that made the features.
    """

    def __init__(self, entry: dict[str, Any]):
        self.normalise = bool(entry.get("normalise", True))
        self._encoder = load_encoder(entry["encoder"])
        if entry.get("fingerprint", self._encoder.fingerprint) != self._encoder.fingerprint:
            raise EncoderError(
                f"The encoder {self._encoder.name} has other weights than when the features were extracted: run "
                "`divff extract --overwrite`, or bring the old weights back."
            )

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self._encoder.dimension

    def encode(self, phrases: Sequence[str]) -> Float[Tensor, "phrases dim"]:
        """Embeddings of phrases, single precision, on the CPU."""
        return self._encoder.encode_text(phrases, self.normalise).clone()

    def __call__(self, phrases: Sequence[str]) -> Float[Tensor, "phrases dim"]:
        """As `encode`."""
        return self.encode(phrases)


def text_encoder(entry: dict[str, Any]) -> TextEncoder:
    """The text encoder of a header's entry; each is built once.

    Args:
        entry: See `TextEncoder`.
    """
    return _text_encoder(json.dumps(entry, sort_keys=True))


@lru_cache(maxsize=4)
def _text_encoder(entry: str) -> TextEncoder:
    return TextEncoder(json.loads(entry))
