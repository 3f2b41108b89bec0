"""Codes of moments: smooth in time and of low rank."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from divff_nerfstudio.fields.encodings import positional_encoding


class LowRankTimeCode(nn.Module):
    """Low-rank trajectories (NeuralDiff, Tschernezki 2021): a learned matrix times sines and cosines of the time.

    Moments between training frames get codes between theirs, which a table of one code per frame does not give.

    Args:
        octaves: Frequencies of the sines.
        dim: Length of a code.
    """

    def __init__(self, octaves: int, dim: int = 17):
        super().__init__()
        self.encoding = positional_encoding(1, octaves)
        self.basis = nn.Parameter(torch.randn(self.encoding.get_out_dim(), dim) * 0.3)
        self.out_dim = dim

    def forward(self, times: Float[Tensor, "*bs 1"]) -> Float[Tensor, "*bs dim"]:
        """Codes of times in [0, 1]."""
        return self.encoding(2 * times - 1) @ self.basis


def octaves_for(num_frames: int) -> int:
    """Octaves whose fastest sine has a period of at least six of the video's frames, as in the published system.

    Faster ones would memorise the training frames and blur the held-out ones between them.
    """
    return max(3, math.floor(math.log2(max(num_frames, 6) / 6)) + 1)
