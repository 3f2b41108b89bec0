"""How relevant features are to what is looked for, in [0, 1]: to phrases, or to an example that was pointed at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PUBLISHED_NEGATIVES: Mapping[str, tuple[str, ...]] = {
    "image": ("object", "things", "stuff", "hands"),
    "video": ("general task", "undistic movement", "unclear action", "background"),
}
"""The phrases that a query is held against in DIV-FF, spelt as there."""
EXAMPLE_NAME = re.compile(r"\[point \d+\]")
"""How phrases are called that are no words but something pointed at."""


def relevancy(
    features: Float[Tensor, "*bs dim"],
    positives: Float[Tensor, "phrases dim"],
    negatives: Float[Tensor, "others dim"],
    temperature: float = 10.0,
) -> Float[Tensor, "*bs phrases"]:
    """Relevancy of features to phrases: LERF (Kerr et al. 2023), equation 4.

    For each negative phrase, a softmax over `temperature` times the similarities to the query and to that negative; the
    least of the query's probabilities. The least belongs to the negative that is most similar, so one sigmoid of the
    difference to it is the same number.

    Args:
        features: Features, of unit length.
        positives: Embeddings of the phrases asked for.
        negatives: Embeddings of the phrases to hold them against, at least one.
        temperature: Factor of the similarities.

    Returns:
        Relevancies in [0, 1]; 0.5 where query and nearest negative are equally similar.
    """
    strongest = (features @ negatives.T).amax(dim=-1, keepdim=True)
    return torch.sigmoid(temperature * (features @ positives.T - strongest))


@dataclass(frozen=True)
class Example:
    """A feature that was pointed at and stands for a phrase.

    Features of images are far closer to each other than to any text, so an example is not held against the negatives
    but against the view that it was found in: `level` is the similarity halfway between the example itself and the mean
    of that view.
    """

    feature: Float[Tensor, "dim"]
    """The feature, of unit length."""
    level: float
    """Similarity from which on something is rather like the example than like the rest."""

    @classmethod
    def of(cls, features: Float[Tensor, "height width dim"], row: int, col: int) -> Example:
        """The feature of a pixel, held against the rest of its view."""
        feature = features[row, col]
        return cls(feature.detach().cpu(), 0.5 + 0.5 * min(float((features @ feature).mean()), 0.98))

    def relevancy(self, features: Float[Tensor, "*bs dim"]) -> Float[Tensor, "*bs"]:
        """Relevancies in [0, 1]: 0.98 for the example itself, 0.5 at its level, 0.02 for the mean of its view."""
        return torch.sigmoid(4 * (features @ self.feature.to(features) - self.level) / (1 - self.level))
