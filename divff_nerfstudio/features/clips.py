"""Clips of pictures as a model's input: resized, cropped or stretched, normalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's colours."""


@dataclass(frozen=True)
class ClipPreprocessing:
    """How pictures become a model's input."""

    mean: tuple[float, ...]
    """Mean that colours (0 to 1) are normalised by."""
    std: tuple[float, ...]
    """Standard deviation that they are normalised by."""
    fit: Literal["crop", "stretch"] = "crop"
    """Whether the shorter side is resized and the middle cut out, or both sides are resized."""

    def __call__(
        self, clips: UInt8[np.ndarray, "n length height width 3"], size: int, device: torch.device
    ) -> Float[Tensor, "n length 3 size size"]:
        """Prepares clips on a device, in single precision; resizing is bilinear.

        Args:
            clips: The pictures.
            size: Height and width of the input.
            device: Where to.
        """
        count, length, height, width = clips.shape[:4]
        pictures = torch.from_numpy(np.ascontiguousarray(clips)).to(device).flatten(0, 1).permute(0, 3, 1, 2).float()
        short = size if self.fit == "stretch" else min(height, width)
        scaled = (size, size) if self.fit == "stretch" else (size * height // short, size * width // short)
        if scaled != (height, width):
            pictures = F.interpolate(pictures, scaled, mode="bilinear", antialias=True)
        top, left = ((side - size) // 2 for side in scaled)
        pictures = pictures[:, :, top : top + size, left : left + size]
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (self.mean, self.std))
        return ((pictures / 255 - mean) / std).unflatten(0, (count, length))
