"""What the methods share that render rays: bounds, views in chunks, rays of no camera, codes, the proposal's loss."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.losses import lossfun_distortion, lossfun_outer, ray_samples_to_sdist
from torch import Tensor

from divff_nerfstudio.card import free_bytes
from divff_nerfstudio.fields.layers import LAYERS, Layer
from divff_nerfstudio.fields.networks import half_precision
from divff_nerfstudio.models.base import CODE, LayeredModel
from divff_nerfstudio.models.view import PICTURES
from divff_nerfstudio.rendering import ProposalSamples

_CROP = "crop"
CUT = "cut"
"""Key of a ray bundle's metadata: which rays end where a crop does, before their frame's far."""
_CLEAR = 0.5
"""Up to where the room is hardly ever, in units of its frame's near (a low quantile of sparse points, mostly)."""
_BYTES_OF_A_RAY = 2**18
"""What the activations of a ray take at most while it is rendered."""
UNSEEN_WEARER: tuple[Layer, ...] = ("static", "dynamic")
"""Layers of a view that belongs to no camera: where the actor is depends on one."""


class RayModel(LayeredModel):
    """A method that renders rays: it says how they become samples, layers and outputs (`_render`)."""

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:  # pyright: ignore
        """Renders rays of all layers.

        ``ns-render --render-nearest-camera`` gives rays that belong to no camera, even in the direction from a camera
        to itself, which is none: nothing is seen of the actor then.

        Args:
            ray_bundle: Rays, with "camera_directions" in their metadata if they are a camera's; near, far and time may
                be missing.

        Returns:
            In training what the losses need; otherwise `PICTURES` and, once features are trained, the rays' code.
        """
        wanted = {*PICTURES, CODE} if self.features_trained else {*PICTURES}
        if "camera_directions" in ray_bundle.metadata:
            return self.along(ray_bundle, LAYERS, wanted)
        rays = replace(ray_bundle, directions=torch.nan_to_num(ray_bundle.directions))
        rays.metadata = {**rays.metadata, "camera_directions": rays.directions}
        return self.along(rays, UNSEEN_WEARER, wanted)

    def along(self, rays: RayBundle, layers: tuple[Layer, ...], wanted: Collection[str]) -> dict[str, Any]:
        """Renders rays.

        Args:
            rays: Rays with "camera_directions" in their metadata; near, far and time may be missing.
            layers: The layers that are seen; the static one is among them.
            wanted: Names of pictures that are wanted, and `CODE`; in training the losses say what is.
        """
        rays = self._bounded(rays)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (self.training and self.geometry_frozen)):
            rendered = self._render(rays, layers, wanted)
        state = rendered.pop("state")
        if CODE in wanted:
            rendered[CODE] = self._code(rays, state, self.training and self.features_detached)
        return rendered

    @abstractmethod
    def _render(self, rays: RayBundle, layers: tuple[Layer, ...], wanted: Collection[str]) -> dict[str, Any]:
        """What `along` gives, and in "state" the points, layers and weights that features are rendered from."""

    def _view_of(
        self, camera: Cameras, layers: tuple[Layer, ...], box: OrientedBox | None, wanted: Collection[str]
    ) -> dict[str, Float[Tensor, "height width channels"]]:
        """Pictures of a view, some rays at a time, with directions in the camera's own frame."""
        camera = camera.to(self.device)
        rays = camera.generate_rays(camera_indices=0, keep_shape=True, obb_box=box)
        rays.metadata = {"camera_directions": self._camera_directions(camera, rays)}
        if rays.nears is not None and rays.fars is not None:
            rays.metadata[_CROP] = torch.cat((rays.nears, rays.fars), -1)
            rays.nears = rays.fars = None
        parts, size = defaultdict(list), self.rays_in_a_chunk
        for start in range(0, len(rays), size):
            chunk = rays.get_row_major_sliced_ray_bundle(start, start + size)
            with half_precision(self.in_half):
                rendered = self.along(chunk, layers, wanted)
            for name, part in rendered.items():
                parts[name].append(part)
        return {name: torch.cat(found).view(*rays.shape, -1) for name, found in parts.items()}

    @property
    def in_half(self) -> bool:
        """Whether the networks of views multiply in bfloat16."""
        return False

    def _features(self, code: Float[Tensor, "*bs code"], kind: str) -> Float[Tensor, "*bs dim"]:
        """Features of one kind that can be asked, of unit length."""
        with half_precision(self.in_half):
            return super()._features(code, kind)

    @property
    def rays_in_a_chunk(self) -> int:
        """Rays of a view that are rendered at a time: as configured, on a card as many more as its memory holds."""
        usual, free = self.config.eval_num_rays_per_chunk, free_bytes(self.device)
        return usual if free is None else max(usual, free // 4 // _BYTES_OF_A_RAY)

    def _camera_directions(self, camera: Cameras, rays: RayBundle) -> Float[Tensor, "*bs 3"]:
        """Unit directions of a camera's rays in its own frame."""
        rotation = camera.camera_to_worlds.reshape(-1, camera.camera_to_worlds.shape[-2], 4)[0, :3, :3]
        return rays.directions @ rotation.to(rays.directions)

    def _bounded(self, rays: RayBundle) -> RayBundle:
        """Rays with a time, and with the near and far of the training frame next in time, widened, and cropped."""
        times, nears, fars = rays.times, rays.nears, rays.fars
        if times is None:
            times = torch.full_like(rays.origins[..., :1], self.config.default_time)
        if nears is None or fars is None:
            nears, fars = self._frame_bounds(times)
        nears, fars, metadata = nears * self.config.near_scale, fars * self.config.far_scale, rays.metadata
        if _CROP in metadata:
            enter, leave = metadata[_CROP].split(1, -1)
            metadata = {**metadata, CUT: (leave < fars) | (enter >= fars)}
            # A ray that misses the box keeps an interval too thin to show anything.
            nears = nears.maximum(enter.minimum(fars))
            fars = fars.minimum(leave).maximum(nears * (1 + 1e-5))
        return replace(rays, times=times, nears=nears, fars=fars, metadata=metadata)

    def _code(self, rays: RayBundle, state: Any, detach: bool) -> Tensor:
        """Codes of rays that the semantic heads decode."""
        assert self.semantic is not None and rays.times is not None
        points, fields, weights = state
        time_code = self.field.time_code(rays.times)
        if detach:
            time_code = time_code.detach()
            weights = {layer: weight.detach() for layer, weight in weights.items()}
            for samples in fields.values():
                samples.encoding = samples.encoding.detach()
        return self.semantic.code(points, fields, weights, time_code)


def proposal_loss(
    proposal: ProposalSamples,
    samples: RaySamples,
    weights: Float[Tensor, "rays samples"],
    static_weights: Float[Tensor, "rays samples"],
) -> Float[Tensor, ""]:
    """Teaches the proposal to bound the weights of what it leads to (mip-NeRF 360, equation 13).

    Args:
        proposal: The proposal.
        samples: What was drawn from it.
        weights: Weights of all layers together.
        static_weights: Weights of the static layer alone, which the proposal's room bounds.
    """
    drawn, proposed = ray_samples_to_sdist(samples).detach(), ray_samples_to_sdist(proposal.samples)
    bounds = ((weights, proposal.weights), (static_weights, proposal.room_weights))
    return sum(
        (lossfun_outer(drawn, found.detach(), proposed, bound[..., 0]).mean() for found, bound in bounds),
        torch.zeros(()),
    )


def clear_space_loss(
    distances: Float[Tensor, "rays samples"], weights: Float[Tensor, "rays samples"], nears: Float[Tensor, "rays 1"]
) -> Float[Tensor, ""]:
    """Wants the air around the head to be clear: behind arms, nothing else keeps the room from being there.

    Args:
        distances: Of the samples, scene units.
        weights: The room's.
        nears: Where the room begins in the rays' frames; what is nearer than half of that counts.
    """
    return (weights * (distances < _CLEAR * nears)).sum(-1).mean()


def distortion_loss(samples: RaySamples, weights: Float[Tensor, "rays samples"]) -> Float[Tensor, ""]:
    """Wants what a ray meets to be at one place: no fog before the room, where few frames look (mip-NeRF 360, equation
    15).

    Args:
        samples: The samples; distances count as their spacing does.
        weights: Weights of what shall be at one place.
    """
    return lossfun_distortion(ray_samples_to_sdist(samples).detach(), weights).mean()
