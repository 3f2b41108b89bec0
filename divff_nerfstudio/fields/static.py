"""The static layer: what stays, in world space."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from divff_nerfstudio.fields.encodings import GridEncoding
from divff_nerfstudio.fields.layers import LayerSamples, SamplePoints
from divff_nerfstudio.fields.networks import Network
from divff_nerfstudio.fields.space import SceneSpace, activated_density

PERMANENT = 2.0
"""Raw permanence at which places start: most of what is there stays."""


class StaticField(nn.Module):
    """Density, permanence and colour of places, the same at all times and from all sides.

    Without view dependence nothing that moves with the camera can hide in this layer. Permanence is the share of the
    density that stays at all times.

    Args:
        space: The scene's units.
        grid: Encoding of places.
        hidden: Width of the networks.
        encoding_dim: Length of the encoding that is handed on.
    """

    def __init__(self, space: SceneSpace, grid: GridEncoding, hidden: int, encoding_dim: int):
        super().__init__()
        self.space, self.grid = space, grid
        self.network = Network(self.grid.out_dim, num_layers=2, layer_width=hidden, out_dim=2 + encoding_dim)
        self.colour = Network(encoding_dim, num_layers=2, layer_width=hidden, out_dim=3, out_activation=nn.Sigmoid())

    def vacating(self, positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points"]:
        """Density, in 1 / scene unit, of what is there for a while only."""
        hidden = self.network(self.grid(self.space.to_unit_cube(positions)))
        return activated_density(hidden[:, 0], self.space) * torch.sigmoid(-hidden[:, 1] - PERMANENT)

    def forward(self, points: SamplePoints) -> LayerSamples:
        """The layer at samples."""
        shape = points.positions.shape[:2]
        hidden = self.network(self.grid(self.space.to_unit_cube(points.positions.reshape(-1, 3))))
        encoding = hidden[:, 2:]
        return LayerSamples(
            density=activated_density(hidden[:, 0], self.space).view(shape),
            rgb=self.colour(encoding).view(*shape, 3),
            encoding=encoding.view(*shape, -1),
            permanence=torch.sigmoid(hidden[:, 1] + PERMANENT).view(shape),
        )
