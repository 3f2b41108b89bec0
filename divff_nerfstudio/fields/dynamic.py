"""The dynamic layer: objects that rest most of the time and are moved now and then, in world space and time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from nerfstudio.field_components.mlp import MLP
from torch import Tensor, nn

from divff_nerfstudio.fields.encodings import GridEncoding, Implementation
from divff_nerfstudio.fields.layers import LayerSamples, SamplePoints
from divff_nerfstudio.fields.space import SceneSpace, density_from
from divff_nerfstudio.fields.time_code import LowRankTimeCode


class DynamicField(nn.Module):
    """Density, colour and uncertainty of places at times.

    Args:
        space: The scene's units.
        implementation: Encoding of places.
        resolutions: See `GridEncoding`.
        channels: See `GridEncoding`.
        hidden: Width of the network.
        encoding_dim: Length of the encoding that is handed on.
        time_octaves: Frequencies of the time code.
        density_shift: Start of the raw density.
        largest_uncertainty: Bound of the uncertainty, so that it cannot explain a wrong colour away.
    """

    def __init__(
        self,
        space: SceneSpace,
        implementation: Implementation,
        resolutions: Sequence[int],
        channels: int,
        hidden: int,
        encoding_dim: int,
        time_octaves: int,
        density_shift: float,
        largest_uncertainty: float,
    ):
        super().__init__()
        self.space = space
        self.density_shift = density_shift
        self.largest_uncertainty = largest_uncertainty
        self.grid = GridEncoding(implementation, resolutions, channels)
        self.time_code = LowRankTimeCode(time_octaves)
        self.network = MLP(
            self.grid.out_dim + self.time_code.out_dim, num_layers=4, layer_width=hidden, out_dim=6 + encoding_dim
        )

    def raw(self, positions: Float[Tensor, "points 3"], codes: Float[Tensor, "points dim"]) -> Tensor:
        """The network's outputs: density, colour (3), uncertainty, encoding, presence."""
        return self.network(torch.cat((self.grid(self.space.to_unit_cube(positions)), codes), -1))

    def density(
        self, positions: Float[Tensor, "points 3"], times: Float[Tensor, "points 1"]
    ) -> tuple[Float[Tensor, "points"], Float[Tensor, "points"]]:
        """Density of what comes to a place, and presence there of what leaves it."""
        raw = self.raw(positions, self.time_code(times))
        return density_from(raw[:, 0], self.space, self.density_shift), torch.sigmoid(raw[:, -1])

    def forward(self, points: SamplePoints, static: LayerSamples | None = None) -> LayerSamples:
        """The layer at samples.

        Args:
            points: The samples.
            static: The static layer there with all that ever rests in it. What of it does not stay is this layer's
                while it is there, in the colours that it has there.
        """
        codes = points.per_sample(self.time_code(points.times))
        raw = self.raw(points.positions.reshape(-1, 3), codes)
        comes = moving_layer(raw[:, :-1], points, self.space, self.density_shift, self.largest_uncertainty)
        if static is None:
            return comes
        assert static.permanence is not None
        presence = torch.sigmoid(raw[:, -1]).view(comes.density.shape)
        leaves = static.density * (1 - static.permanence) * presence
        return mixed(comes, static, leaves)


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
    largest_uncertainty: float,
) -> LayerSamples:
    """A layer that moves from its network's outputs: density, colour (3), uncertainty, encoding."""
    shape = points.positions.shape[:2]
    return LayerSamples(
        density=density_from(raw[:, 0], space, density_shift).view(shape),
        rgb=torch.sigmoid(raw[:, 1:4]).view(*shape, 3),
        uncertainty=(largest_uncertainty * torch.sigmoid(raw[:, 4] - 1)).view(shape),
        encoding=raw[:, 5:].view(*shape, -1),
    )
