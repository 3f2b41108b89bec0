"""What a field says of samples: density, colour, uncertainty and encoding of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Layer = Literal["static", "dynamic", "actor"]
LAYERS: tuple[Layer, ...] = ("static", "dynamic", "actor")
"""Static room, objects that move, the camera wearer: the order of everything that is per layer."""


@dataclass
class LayerSamples:
    """One layer at the samples of rays."""

    density: Float[Tensor, "rays samples"]
    """In 1 / scene unit."""
    rgb: Float[Tensor, "rays samples 3"]
    """Colour in [0, 1]."""
    encoding: Float[Tensor, "rays samples dim"]
    """What the semantic heads read."""
    uncertainty: Float[Tensor, "rays samples"] | None = None
    """Standard deviation of the colour; the static layer has none."""
    permanence: Float[Tensor, "rays samples"] | None = None
    """Share of the density that is never taken away; the static layer alone has it."""
    carried: Float[Tensor, "rays samples"] | None = None
    """Share of the density that belongs to what the hands carry; the actor alone has it."""


@dataclass
class SamplePoints:
    """Where and when the samples of rays are."""

    positions: Float[Tensor, "rays samples 3"]
    """World, in scene units."""
    camera_positions: Float[Tensor, "rays samples 3"]
    """The same points in the frame of the ray's camera (right, up, back)."""
    directions: Float[Tensor, "rays 3"]
    """Unit directions of the rays in the world."""
    times: Float[Tensor, "rays 1"]
    """Times of the rays in [0, 1]."""
    head_positions: Float[Tensor, "rays samples 3"] | None = None
    """The same points in the frame of the camera that filmed at that time, where the ray's camera is another."""

    def per_sample(self, per_ray: Float[Tensor, "rays dim"]) -> Float[Tensor, "points dim"]:
        """Repeats what is per ray for each of its samples, flattened."""
        rays, samples = self.positions.shape[:2]
        return per_ray[:, None].expand(rays, samples, -1).reshape(rays * samples, -1)
