"""Drawing the Gaussians of layers in a view: together, the static layer alone, a moving layer in the room, and the
pictures that are made of these."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from divff_nerfstudio.fields.layers import LAYERS, Layer
from divff_nerfstudio.models.base import CODE
from divff_nerfstudio.models.splat.rasterise import rasterization
from divff_nerfstudio.models.splat.splats import Splats
from divff_nerfstudio.models.splat.views import RasterCamera

MOVING: tuple[Layer, Layer] = ("dynamic", "actor")
_GEOMETRY = ("means", "quats", "scales", "opacities")


@dataclass
class Drawing:
    """The Gaussians of layers in a view."""

    view: RasterCamera
    """What they are drawn for."""
    splats: dict[Layer, Splats]
    """The Gaussians; a layer may have none."""
    near: float
    """Depth under which nothing is drawn, in lengths of the scene."""
    min_uncertainty: float
    """Standard deviation of the colours of the static layer."""
    darken: Callable[[Float[Tensor, "places 3"], Float[Tensor, "places 1"]], Float[Tensor, "places"]] | None
    """Share of its light that the actor takes from a place before the camera at a time; None: no shadow is seen."""

    @cached_property
    def shadow(self) -> Float[Tensor, "gaussians"] | None:
        """Share of its light that the actor takes from each static Gaussian; None where there is no shadow."""
        static = self.splats["static"]
        if self.darken is None or not len(static):
            return None
        places = self.view.in_camera(static.means.detach())
        return self.darken(places, self.view.moment.time.view(1, 1).expand(len(places), 1))

    def composite(
        self, values: list[Float[Tensor, "gaussians channels"]], layers: tuple[Layer, ...] | None = None
    ) -> tuple[Float[Tensor, "rays channels"], Float[Tensor, "rays"], dict[str, Any]]:
        """Composites values of Gaussians, in one pass.

        Args:
            values: Of all Gaussians, layer by layer.
            layers: The layers; None: all.

        Returns:
            The sums, the sums of the weights, and the rasteriser's facts.
        """
        splats = [self.splats[layer] for layer in layers or self.splats]
        image, alpha, facts = rasterization(
            *(torch.cat([getattr(each, name) for each in splats]) for name in _GEOMETRY),
            colors=torch.cat(values, -1),
            viewmats=self.view.world_to_camera[None],
            Ks=self.view.camera_matrix[None],
            width=self.view.width,
            height=self.view.height,
            near_plane=self.near,
        )
        return image[0].flatten(0, 1), alpha.flatten(), facts

    def together(
        self, codes: bool, lasting: Callable[[Splats], Float[Tensor, "gaussians"]] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Draws all layers: what every picture is made of, and the rasteriser's facts.

        Args:
            codes: Whether the Gaussians' codes are drawn, too, to "rest".
            lasting: A number of each dynamic Gaussian that is drawn there in their place.
        """
        splats, shadow = self.splats, self.shadow
        colours = {layer: each.colours for layer, each in splats.items()}
        if shadow is not None:
            colours["static"] = colours["static"] * (1 - shadow)[:, None]
        joined = torch.cat(list(colours.values()))
        marks = [
            torch.cat([each.opacities.new_full((len(each),), float(name == layer)) for name, each in splats.items()])
            for layer in MOVING
        ]
        uncertainties = torch.cat([each.uncertainties for each in splats.values()])
        depths = self.view.depths(torch.cat([each.means for each in splats.values()]))
        values = [joined, torch.stack((*marks, uncertainties, depths), -1)]
        if codes:
            values.append(torch.cat([each.codes for each in splats.values()]))
        elif lasting is not None and "dynamic" in splats:
            numbers = torch.zeros_like(uncertainties)
            start = len(splats["static"])
            numbers[start : start + len(splats["dynamic"])] = lasting(splats["dynamic"])
            values.append(numbers[:, None])
        image, alpha, facts = self.composite(values)
        parts = {
            "rgb": image[:, :3],
            "masks": image[:, 3:5],
            "uncertainty": self.min_uncertainty + image[:, 5],
            "depth": image[:, 6] / alpha.clamp_min(1e-6),
            "accumulation": alpha,
            "rest": image[:, 7:],
        }
        return parts, facts

    def pictures(
        self,
        wanted: Collection[str],
        code: Callable[[Float[Tensor, "rays code"], Float[Tensor, "rays moving"]], Float[Tensor, "rays code"]],
    ) -> dict[str, Float[Tensor, "rays channels"]]:
        """Pictures of the view, and its code.

        Args:
            wanted: Names of pictures, and `CODE`; the rest is not drawn.
            code: The rays' code from their Gaussians' codes and the moving layers' masks.

        Returns:
            What is wanted; colours, masks and uncertainty clamped to [0, 1], depth in lengths of the scene.
        """
        moving: list[Layer] = [layer for layer in MOVING if f"rgb_{layer}" in wanted]
        found: dict[str, Tensor] = {f"rgb_{layer}": self.in_room(layer) for layer in moving}
        if "rgb_static" in wanted:
            found["rgb_static"] = self.static_alone(None)["rgb_static"]
        depth_and_code: dict[str, Tensor] = {}
        if set(wanted) - {f"rgb_{layer}" for layer in LAYERS}:
            parts, _ = self.together(CODE in wanted)
            found |= {
                "rgb": parts["rgb"],
                "accumulation": parts["accumulation"][:, None],
                **{f"mask_{layer}": mask for layer, mask in zip(MOVING, parts["masks"].split(1, -1), strict=True)},
                "mask_moving": parts["masks"].sum(-1, keepdim=True),
                "mask_moved": parts["masks"][:, :1],
                "uncertainty": parts["uncertainty"][:, None],
            }
            if "depth" in wanted:
                depth_and_code["depth"] = parts["depth"][:, None] * self.view.directions()[1]
            if CODE in wanted:
                depth_and_code[CODE] = code(parts["rest"], parts["masks"])
        found = {name: picture.clamp(0, 1) for name, picture in found.items()} | depth_and_code
        return {name: picture for name, picture in found.items() if name in wanted}

    def static_alone(self, shadow: Float[Tensor, "gaussians"] | None) -> dict[str, Tensor]:
        """The static layer without its shadow, where it is closed, and a shadow as it would be seen on it."""
        static = self.splats["static"]
        taken = torch.zeros_like(static.opacities) if shadow is None else shadow
        image, alpha, _ = self.composite([static.colours, taken[:, None]], ("static",))
        full = image / alpha.clamp_min(1e-2)[:, None]
        return {"rgb_static": full[:, :3], "shadow": full[:, 3], "enclosed": alpha}

    def in_room(self, layer: Layer) -> Float[Tensor, "rays 3"]:
        """A moving layer alone, where the static layer does not hide it."""
        if layer not in self.splats or not len(self.splats[layer]):
            return self.view.intrinsics.new_zeros(self.view.height * self.view.width, 3)
        colours = [torch.zeros_like(self.splats["static"].colours), self.splats[layer].colours]
        return self.composite([torch.cat(colours)], ("static", layer))[0]
