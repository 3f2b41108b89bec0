"""Pictures of an answer: where one phrase is relevant, where each of several is, and the outlines of both."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from nerfstudio.utils.colormaps import apply_float_colormap
from torch import Tensor
from torch.nn.functional import max_pool2d

OVERLAY_OFFSET: Mapping[str, float] = {"image": 0.5, "video": 0.51}
"""Relevancy from which on the overlay's colour scale counts (DIV-FF)."""
PALETTE: tuple[str, ...] = (
    "#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#d55e00", "#0072b2", "#b9a3ff",
    "#8dd35f", "#ff8fb1", "#3fd6c9", "#c98b5b", "#9aa7b5", "#ffd0a1", "#7a6cf0", "#d9f0a3",
)  # fmt: skip
"""Colours of the phrases of one query, in their order; the first seven tell apart for the colour-blind, too."""
LINE = "#ffffff"
"""Colour of the outline where one phrase is asked: all others belong to its colour scale."""


def as_rgb(colour: str) -> tuple[float, float, float]:
    """A colour "#rrggbb" as three numbers in [0, 1]."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def overlay(
    rgb: Float[Tensor, "*bs 3"],
    relevance: Float[Tensor, "*bs 1"],
    offset: float = 0.5,
    threshold: float = 0.53,
    strength: float = 1.0,
) -> Float[Tensor, "*bs 3"]:
    """Shows a relevancy map as the published pictures do (DIV-FF).

    What exceeds `offset` is divided by its largest value, its upper half stretched over the colours of "turbo"; where
    relevancy is under `threshold`, the image shows instead, lightened half way to white.

    Args:
        rgb: The image, in [0, 1].
        relevance: Relevancies in [0, 1].
        offset: Relevancy at which the colour scale starts.
        threshold: Relevancy under which the image is shown.
        strength: Share of the overlay in the picture; the rest is the image itself.

    Returns:
        The picture, in [0, 1].
    """
    above = (relevance - offset).clamp(0, 1)
    share = above / above.max().clamp_min(1e-6)
    colours = apply_float_colormap((2 * share - 1).clamp(0, 1), colormap="turbo").to(rgb)
    lightened = 0.5 + 0.5 * rgb
    picture = torch.where(relevance < threshold, lightened, colours)
    return torch.lerp(rgb, picture, strength).clamp(0, 1)


def overlay_several(
    rgb: Float[Tensor, "*bs 3"],
    relevancies: Float[Tensor, "*bs phrases"],
    threshold: float = 0.53,
    strength: float = 1.0,
) -> Float[Tensor, "*bs 3"]:
    """Shows where each of several phrases is relevant, in its colour of `PALETTE`.

    A pixel takes the colour of its most relevant phrase, the more of it the more relevant that phrase is; where none
    reaches `threshold`, the image shows, lightened as in `overlay`.

    Args:
        rgb: The image, in [0, 1].
        relevancies: Relevancies in [0, 1], a channel per phrase.
        threshold: Relevancy under which the image is shown.
        strength: Share of the overlay in the picture; the rest is the image itself.

    Returns:
        The picture, in [0, 1].
    """
    strongest, phrase = relevancies.max(dim=-1, keepdim=True)
    palette = rgb.new_tensor([as_rgb(colour) for colour in PALETTE])
    above = (strongest - threshold).clamp_min(0)
    share = 0.5 + 0.5 * above / above.max().clamp_min(1e-6)
    coloured = torch.lerp(rgb, palette[phrase[..., 0] % len(PALETTE)], share)
    picture = torch.where(strongest < threshold, 0.5 + 0.5 * rgb, coloured)
    return torch.lerp(rgb, picture, strength).clamp(0, 1)


def outline(mask: Bool[Tensor, "height width"], thickness: int) -> Bool[Tensor, "height width"]:
    """The pixels of a mask that lie at most `thickness` from its edge; the picture's own border is no edge."""
    outside = (~mask).float()[None, None]
    near = max_pool2d(outside, 2 * thickness + 1, stride=1, padding=thickness)[0, 0] > 0
    return mask & near


def outlined(
    picture: Float[Tensor, "height width 3"], masks: Bool[Tensor, "height width phrases"]
) -> Float[Tensor, "height width 3"]:
    """Draws around each phrase's mask, in its colour; around that of one phrase alone in `LINE`."""
    phrases = masks.shape[-1]
    thickness = max(1, round(picture.shape[0] / 250))
    for i in range(phrases):
        line = outline(masks[..., i], thickness)
        colour = picture.new_tensor(as_rgb(LINE if phrases == 1 else PALETTE[i % len(PALETTE)]))
        picture = torch.where(line[..., None], colour, picture)
    return picture
