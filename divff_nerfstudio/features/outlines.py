"""Segments by learned outlines: a small network says which pixels show different things, and puts regions together.

The network is a U-Net (Ronneberger et al. 2015) that foresees, for each pixel and some of its neighbours near and far,
whether they show different things (affinities, as in Lee et al. 2017). Pixels, then regions, are joined, those first
between whose pixels least is foreseen on the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int, UInt8
from nerfstudio.configs.base_config import InstantiateConfig
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from divff_nerfstudio.data.masks import resize_nearest
from divff_nerfstudio.features.agglomeration import regions_of
from divff_nerfstudio.features.encoder_loading import DEMO_ENCODER
from divff_nerfstudio.features.pretrained import weights_fingerprint
from divff_nerfstudio.features.segments import Segmenter
from divff_nerfstudio.generators import DrawingFrom
from divff_nerfstudio.schema import Share

OUTLINES = DEMO_ENCODER / "outlines.safetensors"
"""Weights of the network; they know the demo's world only."""
OFFSETS = (0, 1), (1, 0), (0, 4), (4, 0), (0, 12), (12, 0)
"""Rows and columns from a pixel to the neighbours that it is compared with; the first two are next to it."""
WIDTHS = 16, 32, 64, 96
"""Channels of the network at full, half, quarter and eighth size."""
_MEAN, _SPREAD = 105.0, 65.0
_MAX_ASPECT = 8


class OutlineNetwork(nn.Module):
    """Foresees where different things meet.

    Args:
        widths: Channels at full size, at half of it, and so on.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS):
        super().__init__()
        self.down = nn.ModuleList(
            _convolutions(before, width) for before, width in zip((3, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            _convolutions(coarse + fine, fine) for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], len(OFFSETS), 1)

    def forward(self, pictures: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B offsets height width"]:
        """Log odds that the pixel at each of `OFFSETS` from a pixel shows something else.

        Args:
            pictures: Values from 0 to 255, of any size.
        """
        height, width = pictures.shape[-2:]
        coarsest = 2 ** (len(self.down) - 1)
        values = pad((pictures - _MEAN) / _SPREAD, (0, -width % coarsest, 0, -height % coarsest), mode="replicate")
        levels = []
        for i, block in enumerate(self.down):
            values = block(values if i == 0 else nn.functional.max_pool2d(values, 2))
            levels.append(values)
        for block, fine in zip(self.up, levels[-2::-1], strict=True):
            values = block(torch.cat((interpolate(values, scale_factor=2, mode="nearest"), fine), dim=1))
        return self.head(values)[..., :height, :width]


def _convolutions(before: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


@dataclass
class OutlineSegmenterConfig(InstantiateConfig):
    """Options of the segmenter that goes by learned outlines."""

    _target: tyro.conf.Suppress[type] = field(default_factory=lambda: OutlineSegmenter)
    """target class to instantiate"""
    working_height: Annotated[int, Field(ge=16, le=1024)] = 128
    """Pictures are segmented at this height, for which the network was trained."""
    different: Share = 0.5
    """Regions are joined while this probability, on the average over their pairs of pixels, is less."""
    min_size: Annotated[int, Field(ge=0, le=2**20)] = 16
    """Smaller regions, in pixels at the working height, belong to the neighbour that they differ from least."""


class OutlineSegmenter(Segmenter):
    """Regions between learned outlines.

    Args:
        config: Options.
        weights: File of the network's weights.
    """

    ahead = True

    def __init__(self, config: OutlineSegmenterConfig, weights: Path = OUTLINES):
        from safetensors.torch import load_file

        self.config = config
        self.device = torch.device("cpu")
        with DrawingFrom(torch.Generator()):  # a training may look for evidence whose draws must not depend on that
            self.network = OutlineNetwork().eval()
        self.network.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
        self.network.to(memory_format=torch.channels_last)

    def to(self, device: torch.device) -> OutlineSegmenter:
        """Moves the network."""
        self.device = device
        self.network.to(device)
        return self

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the network's weights."""
        return weights_fingerprint(self.network)

    def settings(self) -> dict[str, Any]:
        """Name and options, and which weights."""
        options = asdict(self.config)
        del options["_target"]
        return {"name": "outlines", **options, "fingerprint": self.fingerprint}

    def segment(self, picture: UInt8[np.ndarray, "height width 3"]) -> Int[np.ndarray, "height width"]:
        """The segment of each pixel; every pixel has one."""
        height, width = picture.shape[:2]
        scale = min(1.0, _MAX_ASPECT * height / width) * self.config.working_height / height
        working = max(1, round(width * scale)), max(1, round(height * scale))
        resized = np.asarray(Image.fromarray(picture).resize(working, Image.Resampling.BILINEAR), np.float32)
        with torch.inference_mode():
            values = torch.from_numpy(resized).permute(2, 0, 1)[None].to(self.device)
            different = torch.sigmoid(self.network(values.contiguous(memory_format=torch.channels_last)))[0]
        regions = regions_of(different.float().cpu().numpy(), OFFSETS, self.config.different, self.config.min_size)
        return np.unique(resize_nearest(regions, height, width), return_inverse=True)[1].reshape(height, width)
