"""The actor layer: the camera wearer's arms and hands, in the camera's space and time."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Float
from nerfstudio.field_components.encodings import Encoding
from torch import Tensor, nn

from divff_nerfstudio.fields.dynamic import moving_layer
from divff_nerfstudio.fields.encodings import positional_encoding
from divff_nerfstudio.fields.layers import LayerSamples, SamplePoints
from divff_nerfstudio.fields.networks import Network
from divff_nerfstudio.fields.space import SceneSpace
from divff_nerfstudio.fields.time_code import TimeCode

CARRIED = -2.0
"""Raw share at which the actor's field starts to count as carried."""


class ActorField(nn.Module):
    """Density, colour and uncertainty of places in front of the camera at times.

    A smooth network on few octaves and low-rank time codes: it can follow two arms and cannot draw the room. What hands
    carry moves with them and is drawn with them; a share of the density says that it is an object.

    Args:
        space: The scene's units.
        octaves: Frequencies of the encoded point.
        hidden: Width of the network.
        encoding_dim: Length of the encoding that is handed on.
        time_code: Codes of moments.
        density_shift: Start of the raw density.
        max_uncertainty: Bound of the uncertainty.
        carries: Whether there is such a share.
    """

    def __init__(
        self,
        space: SceneSpace,
        octaves: int,
        hidden: int,
        encoding_dim: int,
        time_code: TimeCode,
        density_shift: float,
        max_uncertainty: float,
        carries: bool = False,
    ):
        super().__init__()
        self.space = space
        self.density_shift = density_shift
        self.max_uncertainty = max_uncertainty
        self.carries = carries
        self.encoding = positional_encoding(3, octaves)
        self.time_code = time_code
        self.network = Network(
            self.encoding.get_out_dim() + self.time_code.out_dim,
            num_layers=4,
            layer_width=hidden,
            out_dim=5 + encoding_dim + carries,
        )

    def encode(self, camera_positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points dim"]:
        """Encodes points in camera space."""
        return self.encoding(self.scaled(camera_positions))

    def scaled(self, camera_positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Points in camera space in lengths of the scene."""
        return camera_positions / self.space.length

    def forward(self, points: SamplePoints) -> LayerSamples:
        """The layer at samples, what is carried included."""
        codes = points.per_sample(self.time_code(points.times))
        raw = self.network(torch.cat((self.encode(points.camera_positions.reshape(-1, 3)), codes), -1))
        if not self.carries:
            return moving_layer(raw, points, self.space, self.density_shift, self.max_uncertainty)
        found = moving_layer(raw[:, :-1], points, self.space, self.density_shift, self.max_uncertainty)
        return replace(found, carried=torch.sigmoid(raw[:, -1] + CARRIED).view(found.density.shape))


class CastsShadow(Protocol):
    """An actor, however it is represented, as its shadow sees it."""

    @property
    def encoding(self) -> Encoding:
        """Encoding of places."""
        ...

    @property
    def time_code(self) -> TimeCode:
        """Codes of moments."""
        ...

    def encode(self, camera_positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points dim"]:
        """Encodes points in camera space."""
        ...

    def scaled(self, camera_positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Points in camera space as an encoding gets them."""
        ...


class ActorShadow(nn.Module):
    """How much of the static layer's light the actor takes away: its shadow (as in D^2NeRF, Wu 2022).

    Shadows of arms are darker than the arms themselves are different from the room, and belong to no layer: without
    this, the actor's density draws them. One evaluation per ray, at the depth of the static layer.

    Args:
        actor: Whose time codes are shared.
        hidden: Width of the network.
        octaves: Frequencies of the encoded place: a shadow that sees fine ones draws what is dark in the room, which
            is then missing there. None: the actor's encoding is shared, too.
    """

    def __init__(self, actor: CastsShadow, hidden: int, octaves: int | None = None):
        super().__init__()
        self.encoding = None if octaves is None else positional_encoding(3, octaves)
        in_dim = (self.encoding or actor.encoding).get_out_dim() + actor.time_code.out_dim
        self.network = Network(in_dim, num_layers=3, layer_width=hidden, out_dim=1)
        last = self.network.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, -3.0)

    def forward(
        self, actor: CastsShadow, camera_positions: Float[Tensor, "rays 3"], times: Float[Tensor, "rays 1"]
    ) -> Float[Tensor, "rays"]:
        """Share of light taken, in [0, 1], at points of the static layer in camera space."""
        if self.encoding is None:
            encoded = actor.encode(camera_positions)
        else:
            encoded = self.encoding(actor.scaled(camera_positions))
        inputs = torch.cat((encoded, actor.time_code(times)), -1)
        return torch.sigmoid(self.network(inputs)[:, 0])
