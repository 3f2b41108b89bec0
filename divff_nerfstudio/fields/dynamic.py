"""The dynamic layer: objects that rest most of the time and are moved now and then, in world space and time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from divff_nerfstudio.fields.encodings import GridEncoding
from divff_nerfstudio.fields.layers import LayerSamples, SamplePoints
from divff_nerfstudio.fields.networks import Network
from divff_nerfstudio.fields.space import SceneSpace, activated_density
from divff_nerfstudio.fields.time_code import TimeCode


class DynamicField(nn.Module):
    """Density, colour and uncertainty of places at times.

    Args:
        space: The scene's units.
        time_code: Codes of moments.
        grid: Encoding of places.
        hidden: Width of the network.
        encoding_dim: Length of the encoding that is handed on.
        density_shift: Start of the raw density.
        max_uncertainty: Bound of the uncertainty, so that it cannot explain a wrong colour away.
    """

    def __init__(
        self,
        space: SceneSpace,
        time_code: TimeCode,
        grid: GridEncoding,
        hidden: int,
        encoding_dim: int,
        density_shift: float,
        max_uncertainty: float,
    ):
        super().__init__()
        self.space, self.density_shift, self.max_uncertainty = space, density_shift, max_uncertainty
        self.grid, self.time_code = grid, time_code
        self.network = Network(
            self.grid.out_dim + self.time_code.out_dim, num_layers=4, layer_width=hidden, out_dim=6 + encoding_dim
        )

    def raw(self, positions: Float[Tensor, "points 3"], codes: Float[Tensor, "points dim"]) -> Tensor:
        """The network's outputs: density, colour (3), uncertainty, encoding, presence."""
        return self.network(torch.cat((self.grid(self.space.to_unit_cube(positions)), codes), -1))

    def density(
        self, positions: Float[Tensor, "points 3"], times: Float[Tensor, "points 1"]
    ) -> tuple[Float[Tensor, "points"], Float[Tensor, "points"]]:
        """Density added to a place at times, and presence there of what can be removed from it."""
        raw = self.raw(positions, self.time_code(times))
        return activated_density(raw[:, 0], self.space, self.density_shift), torch.sigmoid(raw[:, -1])

    def forward(self, points: SamplePoints, static: LayerSamples | None = None) -> LayerSamples:
        """The layer at samples.

        Args:
            points: The samples.
            static: The static layer there with all that ever rests in it. What of it does not stay is this layer's
                while it is there, in the colours that it has there.
        """
        codes = points.per_sample(self.time_code(points.times))
        raw = self.raw(points.positions.reshape(-1, 3), codes)
        added = moving_layer(raw[:, :-1], points, self.space, self.density_shift, self.max_uncertainty)
        if static is None:
            return added
        assert static.permanence is not None
        presence = torch.sigmoid(raw[:, -1]).view(added.density.shape)
        removable = static.density * (1 - static.permanence) * presence
        return mixed(added, static, removable)


def mixed(layer: LayerSamples, other: LayerSamples, density: Float[Tensor, "rays samples"]) -> LayerSamples:
    """A layer with something added to it.

    Args:
        layer: The layer.
        other: What has the colours and encodings of what is added.
        density: Density of what is added, in 1 / scene unit.
    """
    total = layer.density + density
    share = (density / (total + 1e-6))[..., None]
    uncertainty = layer.uncertainty
    if uncertainty is not None and other.uncertainty is not None:
        uncertainty = torch.lerp(uncertainty, other.uncertainty, share[..., 0])
    return LayerSamples(
        density=total,
        rgb=torch.lerp(layer.rgb, other.rgb, share),
        encoding=torch.lerp(layer.encoding, other.encoding, share),
        uncertainty=uncertainty,
    )


def moving_layer(
    raw: Float[Tensor, "points outputs"],
    points: SamplePoints,
    space: SceneSpace,
    density_shift: float,
    max_uncertainty: float,
) -> LayerSamples:
    """A layer that moves from its network's outputs: density, colour (3), uncertainty, encoding."""
    shape = points.positions.shape[:2]
    return LayerSamples(
        density=activated_density(raw[:, 0], space, density_shift).view(shape),
        rgb=torch.sigmoid(raw[:, 1:4]).view(*shape, 3),
        uncertainty=(max_uncertainty * torch.sigmoid(raw[:, 4] - 1)).view(shape),
        encoding=raw[:, 5:].view(*shape, -1),
    )
