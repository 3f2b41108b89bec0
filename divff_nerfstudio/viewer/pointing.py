"""What lies at a pixel: its place in space, its layer, and the words that it is most like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import torch
from jaxtyping import Float
from torch import Tensor

from divff_nerfstudio.query import Query
from divff_nerfstudio.viewer.views import View


@dataclass(frozen=True)
class Layer:
    """The layer that a pixel shows most of."""

    name: str
    """"static", "dynamic" or "actor"."""
    share: float
    """Its share of the pixel, 0 to 1."""


def layer_at(view: View, row: int, col: int) -> Layer:
    """The layer that shows most at a pixel."""
    dynamic, actor, seen = (
        float(view.pictures[name][row, col, 0]) for name in ("mask_dynamic", "mask_actor", "accumulation")
    )
    shares = {"static": max(0.0, seen - dynamic - actor), "dynamic": dynamic, "actor": actor}
    name = max(shares, key=shares.__getitem__)
    return Layer(name, shares[name])


def place_of(view: View, row: int, col: int) -> Float[Tensor, "3"]:
    """Where in space a pixel's surface is, in the scene's units."""
    coords = torch.tensor([row + 0.5, col + 0.5], device=view.camera.device)
    ray = view.camera.generate_rays(camera_indices=torch.zeros(1, 1, dtype=torch.long), coords=coords[None])
    depth = view.pictures["depth"][row, col, 0].to(ray.origins)
    return (ray.origins + ray.directions * depth).reshape(3).cpu()


def pixel_at(view: View, across: float, down: float) -> tuple[int, int]:
    """Row and column of a place in the picture, given as shares of its width and height."""
    row, col = int(down * view.height), int(across * view.width)
    return min(max(row, 0), view.height - 1), min(max(col, 0), view.width - 1)


def vocabulary(kind: str) -> tuple[str, ...]:
    """The words that an unknown thing (kind "image") or place of an action ("video") may be called."""
    content = resources.files("divff_nerfstudio.viewer").joinpath(f"words_{kind}.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in content.splitlines() if line.strip())


def best_words(
    query: Query, kind: str, feature: Float[Tensor, "dim"], words: Sequence[str], count: int = 3
) -> list[tuple[str, float]]:
    """The words whose embeddings are most similar to a feature, and their similarities, the best first.

    Args:
        query: Knows the text encoders.
        kind: Kind of the feature.
        feature: Of unit length.
        words: What there is to choose from.
        count: How many to return.

    Raises:
        QueryError: If the text encoder does not work.
    """
    words = tuple(dict.fromkeys(words))
    similar = query.embeddings(kind, words) @ feature.cpu()
    best = similar.topk(min(count, len(words)))
    return [(words[i], float(score)) for i, score in zip(best.indices.tolist(), best.values, strict=True)]
