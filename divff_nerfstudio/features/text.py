"""The text encoder that speaks the language of a store's features, built from the store's header."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.pretrained import EncoderError
from divff_nerfstudio.generators import DrawingFrom
from divff_nerfstudio.plugins import class_of_file


class PhraseEncoder(ABC):
    """A model that turns phrases into embeddings, such as a source of features names in `text_encoder`.

    Args:
        entry: "text_encoder" of a store's header, as the source has written it.
    """

    name: str
    """What messages call it."""
    fingerprint: str
    """SHA-256 of its weights."""
    dimension: int
    """Length of an embedding."""
    names: Sequence[str] = ()
    """The only things that it has learned to tell apart; none: more than can be told."""

    @abstractmethod
    def __init__(self, entry: dict[str, Any]): ...

    @abstractmethod
    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "phrases dim"]:
        """Embeddings of phrases, single precision, on the CPU, of whatever length the model gives them."""


class OpenClipPhrases(PhraseEncoder):
    """The text tower of a model of open_clip; the entry's "encoder" is the name to `load_encoder`."""

    def __init__(self, entry: dict[str, Any]):
        self._encoder = load_encoder(entry["encoder"])
        self.name, self.fingerprint = self._encoder.name, self._encoder.fingerprint
        self.dimension, self.names = self._encoder.dimension, self._encoder.names

    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "phrases dim"]:
        """Embeddings of phrases."""
        return self._encoder.encode_text(phrases, normalise=False).clone()


FAMILIES: dict[str, str] = {
    "open_clip": "divff_nerfstudio.features.text:OpenClipPhrases",
    "egovideo": "divff_nerfstudio.features.egovideo.encoder:EgoVideoPhrases",
    "xclip": "divff_nerfstudio.features.xclip:XClipPhrases",
    "oracle": "divff_nerfstudio.features.oracle:OraclePhrases",
}
"""Where the class of each family of text encoders is; it is imported when it is asked for."""


class TextEncoder:
    """Turns phrases into embeddings that a store's features are compared with.

    Args:
        entry: "text_encoder" of a store's header: its "family" (one of `FAMILIES`, or a class derived from
            `PhraseEncoder` that the user's own configuration allows, see `plugins`; open_clip where it says nothing),
            what that class needs, the "fingerprint" of its weights, and whether to "normalise" embeddings to unit
            length (they are, unless it says otherwise).

    Raises:
        EncoderError: If the encoder is not to be had, or is not the one that made the features.
    """

    def __init__(self, entry: dict[str, Any]):
        self.normalise = bool(entry.get("normalise", True))
        self._encoder = _family(entry.get("family", "open_clip"))(entry)
        if entry.get("fingerprint", self._encoder.fingerprint) != self._encoder.fingerprint:
            raise EncoderError(
                f"The encoder {self._encoder.name} has other weights than when the features were extracted: run "
                "`divff extract --overwrite`, or bring the old weights back."
            )

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self._encoder.dimension

    @property
    def names(self) -> Sequence[str]:
        """The only things that it has learned to tell apart; none: more than can be told."""
        return self._encoder.names

    def __call__(self, phrases: Sequence[str]) -> Float[Tensor, "phrases dim"]:
        """Embeddings of phrases, single precision, on the CPU."""
        found = self._encoder.encode_text(phrases)
        return normalize(found, dim=-1) if self.normalise else found


class WhenAsked:
    """A text encoder that is built when the first phrase comes, so that headless training never loads one.

    Args:
        make: Builds it from its settings.
        settings: An entry of a store's header, see `TextEncoder`.
    """

    def __init__(self, make: Callable[[dict[str, Any]], Any], settings: dict[str, Any]):
        self._make, self._settings = make, settings

    @cached_property
    def _built(self) -> Any:
        return self._make(self._settings)

    @property
    def names(self) -> Sequence[str]:
        """As `PhraseEncoder.names`."""
        return getattr(self._built, "names", ())

    def __call__(self, phrases: Sequence[str]) -> Float[Tensor, "phrases dim"]:
        """Embeddings of phrases."""
        return self._built(phrases)


def text_encoder(entry: dict[str, Any]) -> TextEncoder:
    """The text encoder of a header's entry; each is built once.

    Args:
        entry: See `TextEncoder`.
    """
    return _text_encoder(json.dumps(entry, sort_keys=True))


@lru_cache(maxsize=4)
def _text_encoder(entry: str) -> TextEncoder:
    # A question in the viewer may build it beside a training, whose random numbers must not depend on that.
    with DrawingFrom(torch.Generator()):
        return TextEncoder(json.loads(entry))


def _family(name: str) -> type[PhraseEncoder]:
    """The class of a family of text encoders."""
    return class_of_file(name, PhraseEncoder, "text encoder of these features", FAMILIES)
