"""Three sets of Gaussians: a room at rest, objects with a duration, and the camera wearer in the camera's frame.

All lengths are in lengths of the scene (`SceneSpace.length`), whatever the units of its poses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from nerfstudio.field_components.mlp import MLP
from torch import Tensor, nn

from divff_nerfstudio.fields.encodings import positional_encoding
from divff_nerfstudio.fields.time_code import LowRankTimeCode, octaves_for
from divff_nerfstudio.models.splat.compositing import MIN_ALPHA
from divff_nerfstudio.models.splat.rasterise import harmonics
from divff_nerfstudio.models.splat.rotations import product
from divff_nerfstudio.models.splat.splats import Moment, Splats, counts_at_once

FADING = 5.0
"""Factor of what an actor's network adds to logits of opacities: arms come and go within few frames."""
HARMONIC_0 = 0.28209479177387814
"""The spherical harmonic of degree 0."""

ROW_GROUPS = {
    "centres": "durations",
    "ramps": "durations",
    "turns": "motions",
}
"""Groups of optimizers of rows that do not have one of their own name."""


class GaussianLayer(nn.Module):
    """One layer's Gaussians, whose number changes while they are trained.

    Args:
        code_dim: Length of the feature codes.
        degree: Degree of the spherical harmonics of the colours.

    Attributes:
        rows: What each Gaussian has, under the names that gsplat's strategies expect: "means", logarithms of "scales",
            "quats", logits of "opacities", and further ones.
    """

    gradients: Tensor
    sightings: Tensor

    def __init__(self, code_dim: int, degree: int):
        super().__init__()
        self.degree = degree
        self.rows = nn.ParameterDict(
            {
                name: nn.Parameter(torch.empty(0, *shape))
                for name, shape in {
                    "means": (3,),
                    "scales": (3,),
                    "quats": (4,),
                    "opacities": (),
                    "colours": (3,),
                    "harmonics": ((degree + 1) ** 2 - 1, 3),
                    "codes": (code_dim,),
                    **self.own_rows(),
                }.items()
            }
        )
        # What gsplat's strategy gathers between two refinements: kept, so that a resumed run refines alike.
        self.register_buffer("gradients", torch.zeros(0))
        self.register_buffer("sightings", torch.zeros(0))
        self.register_load_state_dict_pre_hook(_make_room)

    def own_rows(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what a Gaussian of this layer has beside what all have."""
        return {}

    def __len__(self) -> int:
        return len(self.rows["means"])

    @abstractmethod
    def at(self, moment: Moment) -> Splats:
        """The layer's Gaussians at a moment."""

    def new_rows(
        self,
        means: Float[Tensor, "new 3"],
        scales: Float[Tensor, "new"],
        colours: Float[Tensor, "new 3"],
        opacity: float,
        **own: Tensor,
    ) -> dict[str, Tensor]:
        """Rows of round Gaussians.

        Args:
            means: Centres, in the layer's frame.
            scales: Standard deviations, in lengths of the scene.
            colours: In [0, 1].
            opacity: Of all of them.
            own: The layer's own rows; those that are missing are 0.
        """
        count = len(means)
        given = {
            "means": means,
            "scales": scales.clamp_min(1e-6).log()[:, None].expand(-1, 3),
            "quats": means.new_tensor((1.0, 0.0, 0.0, 0.0)).expand(count, -1),
            "opacities": torch.logit(means.new_tensor(opacity)).expand(count),
            "colours": (colours - 0.5) / HARMONIC_0,
            **own,
        }
        return self.filled(given)

    def filled(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All rows that a Gaussian of this layer has: given ones, as far as it has them, and 0 for those missing."""
        count = len(given["means"])
        return {
            name: given[name].clone() if name in given else row.new_zeros(count, *row.shape[1:])
            for name, row in self.rows.items()
        }

    def make_room(self, count: int) -> None:
        """Gives the layer this many Gaussians, of no meaning, in the same parameters."""
        for row in self.rows.values():
            row.data = row.data.new_zeros(count, *row.shape[1:])
        self.gradients, self.sightings = self.gradients.new_zeros(count), self.sightings.new_zeros(count)

    def splats(
        self,
        moment: Moment,
        means: Float[Tensor, "gaussians 3"],
        quats: Float[Tensor, "gaussians 4"],
        opacities: Float[Tensor, "gaussians"],
        uncertainties: Float[Tensor, "gaussians"] | None = None,
    ) -> Splats:
        """Those Gaussians that can be seen at a moment, from where and how opaque they then are."""
        visible = opacities.detach() > MIN_ALPHA
        if not counts_at_once(visible):
            every = torch.arange(len(means), device=means.device)
            found = self._splats_of(every, dict(self.rows), moment, means, quats, opacities, uncertainties)
            return found.select(visible, moment)
        ids = torch.nonzero(visible)[:, 0]
        rows = {name: self.rows[name][ids] for name in ("scales", "colours", "harmonics", "codes")}
        some = None if uncertainties is None else uncertainties[ids]
        return self._splats_of(ids, rows, moment, means[ids], quats[ids], opacities[ids], some)

    def _splats_of(
        self,
        ids: Int[Tensor, "some"],
        rows: Mapping[str, Tensor],
        moment: Moment,
        means: Float[Tensor, "some 3"],
        quats: Float[Tensor, "some 4"],
        opacities: Float[Tensor, "some"],
        uncertainties: Float[Tensor, "some"] | None,
    ) -> Splats:
        coefficients = torch.cat((rows["colours"][:, None], rows["harmonics"]), 1)
        return Splats(
            means=means,
            quats=quats,
            scales=rows["scales"].exp(),
            opacities=opacities,
            colours=harmonics(self.degree, (means - moment.origin).detach(), coefficients),
            codes=rows["codes"],
            uncertainties=means.new_zeros(len(ids)) if uncertainties is None else uncertainties,
            ids=ids,
        )


class StaticGaussians(GaussianLayer):
    """The room: in the world, at all times the same."""

    def at(self, moment: Moment) -> Splats:
        """The layer at a moment, which does not matter to it."""
        rows = self.rows
        return self.splats(moment, rows["means"], rows["quats"], rows["opacities"].sigmoid())


class DynamicGaussians(GaussianLayer):
    """Objects that are moved: in the world, each Gaussian with a duration and a low-degree motion within it.

    Temporal opacity has a plateau: what rests for half the video and then is somewhere else needs one Gaussian here
    and one there, not one per frame. Before and after that a Gaussian stays where it then is.

    Args:
        code_dim: Length of the feature codes.
        degree: Degree of the spherical harmonics.
        num_frames: Frames of the training split: no duration is shorter than two of their distances.
        max_uncertainty: Bound of the uncertainty.
    """

    def __init__(self, code_dim: int, degree: int, num_frames: int, max_uncertainty: float):
        super().__init__(code_dim, degree)
        self.interval = 1 / max(1, num_frames - 1)
        self.max_uncertainty = max_uncertainty

    def own_rows(self) -> dict[str, tuple[int, ...]]:
        """When it is there, velocity and acceleration, change of rotation, uncertainty.

        Durations are logarithms of half durations, less a frame's; ramps are logarithms, relative to what is usual.
        """
        return {"centres": (), "durations": (), "ramps": (), "motions": (2, 3), "turns": (4,), "uncertainties": ()}

    def half_durations(self) -> Float[Tensor, "gaussians"]:
        """Half the time that each is there, in units of time."""
        return self.interval + self.rows["durations"].exp()

    def raw_durations(self, half_durations: Float[Tensor, "gaussians"]) -> Float[Tensor, "gaussians"]:
        """Rows of half durations: the inverse of `half_durations`."""
        return (half_durations - self.interval).clamp_min(1e-3 * self.interval).log()

    def ramps(self) -> Float[Tensor, "gaussians"]:
        """How softly each comes and goes, in units of time: 0.15 of its half duration, unless learned otherwise."""
        return (0.15 * self.rows["ramps"].exp() * self.half_durations()).clamp_min(0.5 * self.interval)

    def temporal_opacity(self, times: Float[Tensor, "times"]) -> Float[Tensor, "times gaussians"]:
        """Factors of opacities at times: 1 around the centre of a Gaussian's duration, with soft ramps."""
        half, ramps = self.half_durations(), self.ramps()
        offset = times[:, None] - self.rows["centres"]
        born, alive = torch.sigmoid((offset + half) / ramps), torch.sigmoid((half - offset) / ramps)
        return born * alive / torch.sigmoid(half / ramps).square()

    def lasting(self, moments: int) -> Float[Tensor, "gaussians"]:
        """How much of each there is at the one of some moments, drawn all over the video, at which there is least."""
        device = self.rows["means"].device
        times = (torch.rand(moments, device=device) + torch.arange(moments, device=device)) / moments
        return self.temporal_opacity(times).amin(0)

    def rows_of_spans(
        self, starts: Float[Tensor, "gaussians"], ends: Float[Tensor, "gaussians"]
    ) -> dict[str, Float[Tensor, "gaussians"]]:
        """Rows of durations between times, with ramps of one distance of frames.

        Args:
            starts: When they begin; minus infinity: before the video.
            ends: When they end; infinity: after it.
        """
        starts, ends = starts.clamp_min(-4 * self.interval), ends.clamp_max(1 + 4 * self.interval)
        half = self.interval + ((ends - starts) / 2 - self.interval).clamp_min(1e-3 * self.interval)
        return {
            "centres": (starts + ends) / 2,
            "durations": self.raw_durations(half),
            "ramps": (self.interval / (0.15 * half)).log().clamp_max(0),
        }

    def at(self, moment: Moment) -> Splats:
        """The layer at a moment."""
        rows = self.rows
        age = ((moment.time - rows["centres"]) / self.half_durations()).clamp(-1, 1)[:, None]
        velocity, acceleration = rows["motions"].unbind(1)
        return self.splats(
            moment,
            rows["means"] + velocity * age + acceleration * age.square(),
            rows["quats"] + rows["turns"] * age,
            rows["opacities"].sigmoid() * self.temporal_opacity(moment.time[None])[0],
            bounded(rows["uncertainties"], self.max_uncertainty),
        )


class ActorGaussians(GaussianLayer):
    """The camera wearer: Gaussians in the camera's frame that a smooth network displaces, turns and fades with time.

    It sees places in few octaves and low-rank time codes, so that neighbours move alike: it can follow two arms and
    cannot draw the room.

    Args:
        code_dim: Length of the feature codes.
        degree: Degree of the spherical harmonics.
        num_frames: Frames of the training split, which bound the frequencies of the time codes.
        max_uncertainty: Bound of the uncertainty.
        octaves: Frequencies of the encoded place.
        hidden: Width of the network.
    """

    def __init__(self, code_dim: int, degree: int, num_frames: int, max_uncertainty: float, octaves: int, hidden: int):
        super().__init__(code_dim, degree)
        self.max_uncertainty = max_uncertainty
        self.encoding = positional_encoding(3, octaves)
        self.time_code = LowRankTimeCode(octaves_for(num_frames))
        in_dim = self.encoding.get_out_dim() + self.time_code.out_dim
        self.network = MLP(in_dim, num_layers=4, layer_width=hidden, out_dim=8)
        last = self.network.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=1e-2)
        nn.init.zeros_(last.bias)

    def own_rows(self) -> dict[str, tuple[int, ...]]:
        """Uncertainty."""
        return {"uncertainties": ()}

    def encode(self, camera_positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points dim"]:
        """Encodes places in the camera's frame."""
        if not len(camera_positions):  # which nerfstudio's encoding does not take
            return camera_positions.new_zeros(0, self.encoding.get_out_dim())
        return self.encoding(self.scaled(camera_positions))

    def scaled(self, camera_positions: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Places as they are."""
        return camera_positions

    def at(self, moment: Moment) -> Splats:
        """The layer at a moment, in the world of the moment's camera."""
        rows = self.rows
        code = self.time_code(moment.time.view(1, 1)).expand(len(self), -1)
        # The network tells places apart; it does not move them to where it would rather answer.
        change = self.network(torch.cat((self.encode(rows["means"].detach()), code), -1))
        means = rows["means"] + 0.1 * change[:, :3]
        quats = rows["quats"] + change[:, 3:7]
        return self.splats(
            moment,
            (means[:, None] * moment.rotation).sum(-1) + moment.origin,  # no matrix product, which may be of ten bits
            product(moment.turn, quats),
            (rows["opacities"] + FADING * change[:, 7]).sigmoid(),
            bounded(rows["uncertainties"], self.max_uncertainty),
        )


def bounded(raw: Float[Tensor, "gaussians"], bound: float) -> Float[Tensor, "gaussians"]:
    """Uncertainties from rows, between 0 and a bound, so that they cannot explain a wrong colour away."""
    return bound * torch.sigmoid(raw - 1)


def _make_room(layer: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before weights are loaded: as many Gaussians as they have."""
    assert isinstance(layer, GaussianLayer)
    stored = state.get(f"{prefix}rows.means")
    if stored is not None:
        layer.make_room(len(stored))
