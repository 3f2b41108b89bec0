"""Moving Gaussians where training frames differ from what is rendered of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from divff_nerfstudio.models.splat.gaussians import DynamicGaussians, GaussianLayer
from divff_nerfstudio.models.splat.views import RasterCamera

_MAX_PIXELS = 1 << 14
_TOLERANCE = 0.06


@dataclass
class Residuals:
    """Errors of training frames, thinned out to what is needed for drawing places."""

    views: list[RasterCamera] = field(default_factory=list)
    """The frames' views."""
    pixels: list[Int[Tensor, "pixels"]] = field(default_factory=list)
    """Pixels that were kept of each frame."""
    colours: list[Float[Tensor, "pixels 3"]] = field(default_factory=list)
    """What they should look like."""
    errors: list[Float[Tensor, "pixels"]] = field(default_factory=list)
    """How far, in colour, they are from it beyond a tolerance."""
    depths: list[Float[Tensor, "pixels"]] = field(default_factory=list)
    """Depth of the static layer there, in lengths of the scene."""

    def add(
        self,
        view: RasterCamera,
        colours: Float[Tensor, "rays 3"],
        errors: Float[Tensor, "rays"],
        depths: Float[Tensor, "rays"],
    ) -> None:
        """Adds a frame."""
        kept = torch.randperm(len(errors), device=errors.device)[:_MAX_PIXELS]
        self.views.append(view)
        self.pixels.append(kept)
        self.colours.append(colours[kept])
        self.errors.append((errors[kept] - _TOLERANCE).clamp_min(0))
        self.depths.append(depths[kept])

    def draw(self, count: int) -> Draw:
        """Draws pixels, the wrong ones more often."""
        errors = torch.cat(self.errors) + 1e-8
        chosen = torch.multinomial(errors, count, replacement=True)
        frames = torch.repeat_interleave(
            torch.arange(len(self.errors), device=errors.device),
            torch.tensor([len(each) for each in self.errors], device=errors.device),
        )[chosen]
        pixels = torch.cat(self.pixels)[chosen]
        directions, per_depth = self.views[0].directions()
        moments = [view.moment for view in self.views]
        return Draw(
            colours=torch.cat(self.colours)[chosen],
            places=directions[pixels] * per_depth[pixels] * torch.cat(self.depths)[chosen][:, None],
            rotations=torch.stack([moment.rotation for moment in moments])[frames],
            origins=torch.stack([moment.origin for moment in moments])[frames],
            times=torch.stack([moment.time for moment in moments])[frames],
            pixel_size=1 / float(self.views[0].intrinsics[0]),
        )


@dataclass
class Draw:
    """Pixels of training frames."""

    colours: Float[Tensor, "seeds 3"]
    """What they should look like."""
    places: Float[Tensor, "seeds 3"]
    """Where the static layer is in them, in their cameras' frames."""
    rotations: Float[Tensor, "seeds 3 3"]
    """Orientation of their cameras."""
    origins: Float[Tensor, "seeds 3"]
    """Positions of their cameras."""
    times: Float[Tensor, "seeds"]
    """When."""
    pixel_size: float
    """Size of a pixel at depth 1."""


def dynamic_seeds(layer: GaussianLayer, residuals: Residuals, count: int) -> dict[str, Tensor]:
    """Rows of dynamic Gaussians on the room's surface, or a little in front, that live around their frames' times.

    Args:
        layer: The dynamic layer.
        residuals: Where the picture is wrong.
        count: How many.
    """
    assert isinstance(layer, DynamicGaussians)
    draw = residuals.draw(count)
    places = draw.places * (1 - 0.1 * torch.rand_like(draw.times))[:, None]
    means = torch.einsum("nij,nj->ni", draw.rotations, places) + draw.origins
    shortest, longest = 2 * layer.interval, 0.5
    half = shortest * (longest / shortest) ** torch.rand_like(draw.times)
    return layer.new_rows(
        means,
        -places[:, 2] * draw.pixel_size,
        draw.colours,
        opacity=0.2,
        centres=draw.times,
        durations=layer.raw_durations(half),
    )


def actor_seeds(layer: GaussianLayer, residuals: Residuals, count: int) -> dict[str, Tensor]:
    """Rows of Gaussians between the camera and the room, in the camera's frame.

    Args:
        layer: The actor.
        residuals: Where the picture is wrong.
        count: How many.
    """
    draw = residuals.draw(count)
    places = draw.places * (0.25 + 0.65 * torch.rand_like(draw.times))[:, None]
    return layer.new_rows(places, -places[:, 2] * draw.pixel_size * 1.5, draw.colours, opacity=0.2)
