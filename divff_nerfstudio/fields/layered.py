"""The three fields of the default method as one: samples in, the three layers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Optional

import torch
from jaxtyping import Float
from nerfstudio.configs.base_config import InstantiateConfig
from torch import Tensor, nn

from divff_nerfstudio.fields.actor import ActorField, ActorShadow
from divff_nerfstudio.fields.dynamic import DynamicField, mixed
from divff_nerfstudio.fields.encodings import GridEncoding
from divff_nerfstudio.fields.layers import Layer, LayerSamples, SamplePoints
from divff_nerfstudio.fields.proposal import ProposalField
from divff_nerfstudio.fields.space import SceneSpace
from divff_nerfstudio.fields.static import StaticField
from divff_nerfstudio.fields.time_code import KnotTimeCode, LowRankTimeCode, octaves_for
from divff_nerfstudio.former_names import formerly
from divff_nerfstudio.schema import Number, Octaves, Positive, Resolutions, Size


@dataclass
class LayeredFieldConfig(InstantiateConfig):
    """Sizes of the three fields."""

    sizes_by_device: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cuda": {
            "static_resolutions": (128, 512),
            "dynamic_resolutions": (64, 256),
            "dynamic_hidden": 128,
            "actor_hidden": 192,
        },
        "cpu": {
            "static_resolutions": (64, 256),
            "dynamic_resolutions": (128,),
            "dynamic_hidden": 64,
            "actor_hidden": 96,
        },
    }
    """Sizes by the kind of device that is trained on, unless said otherwise. Those of a card had moving AP 0.85 after
    5000 steps of 4096 rays in which the others had 0.78 (an H100, geometry alone, without evidence)."""

    _target: type = field(default_factory=lambda: LayeredField)
    """target class to instantiate"""
    implementation: Literal["planes", "hash", "tcnn"] = "planes"
    """Encoding of places: planes, whose runs open on every device. "hash" is nerfstudio's hash grid in PyTorch, slow
    everywhere, for runs that have one; "tcnn" that of tinycudann, for checkpoints that need not open without it."""
    static_resolutions: Optional[Resolutions] = None  # noqa: UP045
    """Resolutions of the static layer's planes. None: by device, settled when training starts."""
    static_channels: Size = 16
    """Channels per resolution of the static layer."""
    dynamic_resolutions: Optional[Resolutions] = None  # noqa: UP045
    """Resolutions of the dynamic layer's planes. None: by device."""
    dynamic_channels: Size = 16
    """Channels per resolution of the dynamic layer."""
    dynamic_hidden: Optional[Size] = None  # noqa: UP045
    """Width of the dynamic layer's network. None: by device."""
    actor_octaves: Octaves = 8
    """Frequencies of the actor's encoded point; the slowest has a period of two lengths of the scene."""
    actor_hidden: Optional[Size] = None  # noqa: UP045
    """Width of the actor's network. None: by device."""
    hidden: Size = 64
    """Width of the static layer's networks and of the shadow's."""
    encoding_dim: Size = 15
    """Length of each layer's encoding, which the semantic heads read."""
    density_shift: Number = -2.0
    """Raw density at which the dynamic and actor layers start: they are nearly transparent at first."""
    max_uncertainty: Annotated[Positive, formerly("--pipeline.model.fields.largest-uncertainty")] = 0.2
    """Bound of the uncertainty of a sample's colour; unbounded, it explains the actor away."""
    time_codes: Literal["periodic", "apart"] = "periodic"
    """Codes of moments. "periodic": sines for dynamic layer and actor, nearly the same at the video's end as at its
    beginning, as runs of earlier versions have; "apart": the dynamic layer learns a code for every few frames, and the
    actor's sines tell the ends apart."""
    permanence: bool = True
    """Let the dynamic layer take away what the static layer has kept."""
    carried: bool = False
    """Let what the hands carry be drawn in the actor's space and count as dynamic; comes with `evidence` "auto"."""
    shadow: bool = True
    """Model the actor's shadow, which darkens the static layer."""
    shadow_octaves: Optional[Octaves] = None  # noqa: UP045
    """Frequencies of the place that a shadow falls on. None: the actor's, as runs of earlier versions have."""

    def settle(self, device: str) -> None:
        """Settles the sizes that depend on the kind of device, "cuda" or "cpu"; what was chosen stays."""
        for name, size in self.sizes_by_device[device].items():
            if getattr(self, name) is None:
                setattr(self, name, size)


class LayeredField(nn.Module):
    """Static, dynamic and actor field, the actor's shadow and the proposal field.

    Args:
        config: Sizes; what no training has settled becomes what a CPU has.
        space: The scene's units.
        num_frames: Frames of the training split, which bound the frequencies of the time codes.
    """

    def __init__(self, config: LayeredFieldConfig, space: SceneSpace, num_frames: int):
        super().__init__()
        config.settle("cpu")
        assert config.static_resolutions and config.dynamic_resolutions
        assert config.dynamic_hidden and config.actor_hidden
        self.config = config
        self.space = space
        octaves, apart = octaves_for(num_frames), config.time_codes == "apart"
        self.proposal = ProposalField(space)
        # Each is made in this order: what a training begins with is drawn as they are.
        grid = GridEncoding(config.implementation, config.static_resolutions, config.static_channels)
        self.static = StaticField(space, grid, config.hidden, config.encoding_dim)
        time_code = KnotTimeCode(octaves) if apart else LowRankTimeCode(octaves)
        grid = GridEncoding(config.implementation, config.dynamic_resolutions, config.dynamic_channels)
        self.dynamic = DynamicField(
            space,
            time_code,
            grid,
            config.dynamic_hidden,
            config.encoding_dim,
            config.density_shift,
            config.max_uncertainty,
        )
        self.actor = ActorField(
            space,
            config.actor_octaves,
            config.actor_hidden,
            config.encoding_dim,
            LowRankTimeCode(octaves, ends_apart=apart),
            config.density_shift,
            config.max_uncertainty,
            config.carried,
        )
        self.actor_shadow = ActorShadow(self.actor, config.hidden, config.shadow_octaves) if config.shadow else None

    def forward(
        self, points: SamplePoints, layers: Sequence[Layer], all_at_rest: bool = False
    ) -> dict[Layer, LayerSamples]:
        """The asked layers at samples.

        Args:
            points: The samples.
            layers: Which.
            all_at_rest: Whether the static layer has all that ever rests in it; otherwise the permanent density.
        """
        found: dict[Layer, LayerSamples] = {}
        static, removes = self.static(points), self.config.permanence
        assert static.permanence is not None
        if "static" in layers:
            permanent = static.density * static.permanence if removes and not all_at_rest else static.density
            found["static"] = replace(static, density=permanent)
        if "dynamic" in layers:
            found["dynamic"] = self.dynamic(points, static if removes else None)
        if "actor" in layers:
            found["actor"] = self.actor(points)
        if self.config.carried and {"dynamic", "actor"} & {*layers}:
            self._hand_over(points, found)
        return found

    def _hand_over(self, points: SamplePoints, found: dict[Layer, LayerSamples]) -> None:
        """Gives what the actor carries to the dynamic layer, where the camera was that filmed it."""
        actor = found.get("actor")
        if actor is not None:
            assert actor.carried is not None
            found["actor"] = replace(actor, density=actor.density * (1 - actor.carried), carried=None)
        if "dynamic" not in found:
            return
        if actor is None or points.head_positions is not None:
            head = points.camera_positions if points.head_positions is None else points.head_positions
            actor = self.actor(replace(points, camera_positions=head))
        assert actor.carried is not None
        found["dynamic"] = mixed(found["dynamic"], actor, actor.density * actor.carried)

    def carried_density(self, points: SamplePoints) -> Float[Tensor, "rays samples"]:
        """Density of what the actor carries, in 1 / scene unit."""
        actor = self.actor(points)
        assert actor.carried is not None
        return actor.density * actor.carried

    def dynamic_density(
        self, positions: Float[Tensor, "points 3"], times: Float[Tensor, "points moments"]
    ) -> Float[Tensor, "points moments"]:
        """Density of the dynamic layer at places at several moments each, in 1 / scene unit."""
        moments = times.shape[1]
        added, presence = self.dynamic.density(
            positions[:, None].expand(-1, moments, -1).reshape(-1, 3), times.reshape(-1, 1)
        )
        if not self.config.permanence:
            return added.view_as(times)
        return added.view_as(times) + self.static.vacating(positions)[:, None] * presence.view_as(times)

    def dynamic_at(
        self, positions: Float[Tensor, "points 3"], times: Float[Tensor, "points moments"]
    ) -> tuple[Float[Tensor, "points moments"], Float[Tensor, "points moments 3"]]:
        """Density, in 1 / scene unit, and colour of the dynamic layer, without what is carried, at places at several
        moments each."""
        moments = times.shape[1]

        def repeated(values: Tensor) -> Tensor:
            return values.repeat_interleave(moments, 0)

        places = SamplePoints(positions[:, None], positions[:, None], positions, times[:, :1])
        static = self.static(places) if self.config.permanence else None
        if static is not None:
            assert static.permanence is not None
            static = LayerSamples(
                repeated(static.density),
                repeated(static.rgb),
                repeated(static.encoding),
                permanence=repeated(static.permanence),
            )
        whole = repeated(positions)
        found = self.dynamic(SamplePoints(whole[:, None], whole[:, None], whole, times.reshape(-1, 1)), static)
        return found.density.view_as(times), found.rgb.view(*times.shape, 3)

    def shadow(
        self, camera_positions: Float[Tensor, "rays 3"], times: Float[Tensor, "rays 1"]
    ) -> Float[Tensor, "rays"]:
        """Share of the static layer's light that the actor takes away where the rays meet that layer."""
        if self.actor_shadow is None:
            return torch.zeros_like(times[:, 0])
        return self.actor_shadow(self.actor, camera_positions, times)

    @property
    def span(self) -> tuple[float, float]:
        """Times at which what it tells of begins and ends."""
        return 0.0, 1.0

    @property
    def time_dim(self) -> int:
        """Length of the time codes."""
        return self.dynamic.time_code.out_dim

    def time_code(self, times: Float[Tensor, "rays 1"]) -> Float[Tensor, "rays dim"]:
        """The dynamic layer's code of times, which tells the semantic heads when it is."""
        return self.dynamic.time_code(times)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the group of their optimizer: "grids" learn fastest, "actor" faster than other "networks"."""
        groups: dict[str, list[nn.Parameter]] = {"grids": [], "networks": [], "actor": []}
        for name, parameter in self.named_parameters():
            is_grid = ".grid." in name or name.startswith(("proposal.room.", "proposal.camera."))
            group = "grids" if is_grid else "actor" if name.startswith("actor") else "networks"
            groups[group].append(parameter)
        return groups
