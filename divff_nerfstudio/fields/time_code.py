"""Codes of moments: smooth in time, and fewer than there are frames."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from divff_nerfstudio.fields.encodings import positional_encoding


class TimeCode(nn.Module, ABC):
    """Codes of moments, learned with the layer that reads them."""

    out_dim: int
    """Length of a code."""

    @abstractmethod
    def forward(self, times: Float[Tensor, "*bs 1"]) -> Float[Tensor, "*bs dim"]:
        """Codes of times in [0, 1]."""


class LowRankTimeCode(TimeCode):
    """Low-rank trajectories (NeuralDiff, Tschernezki 2021): a learned matrix times sines and cosines of the time.

    Moments between training frames get codes between theirs, which a table of one code per frame does not give.

    Args:
        octaves: Frequencies of the sines.
        dim: Length of a code.
        ends_apart: Whether there is a slower sine, of half a period in the video. The published ones are the same at
            its end as at its beginning, but for the time itself.
    """

    def __init__(self, octaves: int, dim: int = 17, ends_apart: bool = False):
        super().__init__()
        self.encoding = positional_encoding(1, octaves, first=-1 if ends_apart else 0)
        self.basis = nn.Parameter(torch.randn(self.encoding.get_out_dim(), dim) * 0.3)
        self.out_dim = dim

    def forward(self, times: Float[Tensor, "*bs 1"]) -> Float[Tensor, "*bs dim"]:
        """Codes of times in [0, 1]."""
        return self.encoding(2 * times - 1) @ self.basis


class KnotTimeCode(TimeCode):
    """Learned codes of evenly spaced moments; between two of them those on the line from one to the other.

    What happens at one time is learned there and changes nothing at others, as it does where sines are shared.

    Args:
        octaves: As of `LowRankTimeCode`: three moments per period of its fastest sine. It is what training begins with.
        dim: Length of a code.
    """

    def __init__(self, octaves: int, dim: int = 17):
        super().__init__()
        with torch.no_grad():
            knots = torch.linspace(0, 1, 3 * 2 ** (octaves - 1) + 1)[:, None]
            self.codes = nn.Parameter(LowRankTimeCode(octaves, dim, ends_apart=True)(knots))
        self.out_dim = dim

    def forward(self, times: Float[Tensor, "*bs 1"]) -> Float[Tensor, "*bs dim"]:
        """Codes of times in [0, 1]."""
        last = len(self.codes) - 1
        places = times[..., 0].clamp(0, 1) * last
        before = places.detach().long().clamp_max(last - 1)
        return torch.lerp(self.codes[before], self.codes[before + 1], (places - before)[..., None])


def octaves_for(num_frames: int) -> int:
    """Octaves whose fastest sine has a period of at least six of the video's frames, as in the published system; three
    octaves for videos of less than 24.

    Faster ones would memorise the training frames and blur the held-out ones between them.
    """
    return max(3, math.floor(math.log2(max(num_frames, 6) / 6)) + 1)
