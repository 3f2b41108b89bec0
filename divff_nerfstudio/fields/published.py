"""The network of DIV-FF (Mur-Labadia 2025) and NeuralDiff (Tschernezki 2021), under the names of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from nerfstudio.configs.base_config import InstantiateConfig
from torch import Tensor, nn

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.fields.layers import LAYERS, Layer, LayerSamples, SamplePoints
from divff_nerfstudio.fields.next_in_time import nearest_frame
from divff_nerfstudio.schema import Octaves, Size

PUBLISHED_LAYERS: Mapping[Layer, str] = {"static": "static", "dynamic": "transient", "actor": "person"}
"""What the layers are called in checkpoints."""
_TIES = 64
"""Times are told apart by this part of a row when the nearest training frame is looked for."""


@dataclass
class PublishedFieldConfig(InstantiateConfig):
    """Sizes of the published network."""

    _target: type = field(default_factory=lambda: PublishedField)
    """target class to instantiate"""
    position_octaves: Octaves = 10
    """Octaves in which points are encoded."""
    direction_octaves: Octaves = 4
    """Octaves in which directions are encoded."""
    time_octaves: Octaves = 10
    """Octaves in which times are encoded."""
    trunk_width: Size = 256
    """Width of the trunk's eight layers."""
    branch_width: Size = 128
    """Width of the branches, and length of each layer's encoding."""
    appearance_dim: Size = 48
    """Length of a frame's appearance code."""
    time_dim: Size = 17
    """Length of a frame's time code."""


class FieldSizeError(DivffError):
    """The sizes of a network do not go together."""


class PublishedField(nn.Module):
    """Coarse and fine network with the codes of frames: samples in, the three layers out.

    Its state_dict holds the published names: `embedding_t.W`, `embedding_a.weight`, `nerf_coarse.*`, `nerf_fine.*`.

    Args:
        config: Sizes.
        rows: Rows of the tables of codes; the frame with id i has the time i / (rows - 1).
        train_times: Times of the training frames. All other times take the appearance of the nearest one.

    Raises:
        FieldSizeError: If the trunk is narrower than an encoded point.
    """

    train_rows: Tensor

    def __init__(self, config: PublishedFieldConfig, rows: int, train_times: Float[Tensor, "frames"]):
        super().__init__()
        self.config = config
        self.rows = rows
        positions, directions = _encoded(3, config.position_octaves), _encoded(3, config.direction_octaves)
        if config.trunk_width < positions:
            raise FieldSizeError(
                f"The trunk is {config.trunk_width} wide where the actor's branch, which is as wide, takes the "
                f"{positions} values of an encoded point: a wider one (--pipeline.model.fields.trunk-width) or fewer "
                "octaves (--pipeline.model.fields.position-octaves) can work."
            )
        self.embedding_t = TimeTable(config.time_octaves, config.time_dim)
        self.embedding_a = nn.Embedding(rows, config.appearance_dim)
        self.nerf_coarse = CoarseNetwork(positions, directions, config.trunk_width, config.branch_width)
        self.nerf_fine = FineNetwork(
            positions, directions, config.appearance_dim, config.time_dim, config.trunk_width, config.branch_width
        )
        ordered = (train_times.flatten().double() * (rows - 1)).round().long().unique(sorted=True)
        self.register_buffer("train_rows", ordered, persistent=False)

    @property
    def encoding_dim(self) -> int:
        """Length of each layer's encoding."""
        return self.config.branch_width

    def forward(self, points: SamplePoints, layers: Sequence[Layer]) -> dict[Layer, LayerSamples]:
        """The asked layers at samples, by the fine network."""
        octaves = self.config.position_octaves
        return self.nerf_fine(
            octave_encoding(points.positions, octaves),
            octave_encoding(points.directions, self.config.direction_octaves),
            self.embedding_a(self.appearance_rows(points.times)),
            self.time_code(points.times),
            octave_encoding(points.camera_positions, octaves) if "actor" in layers else None,
            layers,
        )

    def coarse(
        self, points: SamplePoints, colours: bool
    ) -> tuple[Float[Tensor, "rays samples"], Float[Tensor, "rays samples 3"] | None]:
        """Density by the coarse network, and colours if they are asked for."""
        return self.nerf_coarse(
            octave_encoding(points.positions, self.config.position_octaves),
            octave_encoding(points.directions, self.config.direction_octaves) if colours else None,
        )

    def time_code(self, times: Float[Tensor, "rays 1"]) -> Float[Tensor, "rays dim"]:
        """Codes of times, which between two frames lie on the trajectory between theirs."""
        return self.embedding_t(times)

    def appearance_rows(self, times: Float[Tensor, "rays 1"]) -> Int[Tensor, "rays"]:
        """Row of the training frame next in time; of two equally near ones that of the earlier."""
        # Whole numbers: in floating point, the two neighbours of a frame are not equally near.
        sought = (times[:, 0].double() * ((self.rows - 1) * _TIES)).round().long()
        return self.train_rows[nearest_frame(self.train_rows * _TIES, sought)]

    def networks(self) -> list[nn.Parameter]:
        """Parameters of the coarse and the fine network, without the codes."""
        return [*self.nerf_coarse.parameters(), *self.nerf_fine.parameters()]

    def codes(self) -> list[nn.Parameter]:
        """Parameters of the time and appearance codes."""
        return [*self.embedding_t.parameters(), *self.embedding_a.parameters()]


class TimeTable(nn.Module):
    """Low-rank trajectories: a matrix W times sines and cosines of the time.

    Args:
        octaves: Octaves in which times are encoded.
        dim: Length of a code.
    """

    def __init__(self, octaves: int, dim: int):
        super().__init__()
        self.octaves = octaves
        self.W = nn.Parameter(torch.randn(_encoded(1, octaves), dim))

    def forward(self, times: Float[Tensor, "*bs 1"]) -> Float[Tensor, "*bs dim"]:
        """Codes of times in [0, 1]."""
        return self.basis(times) @ self.W

    def basis(self, times: Float[Tensor, "*bs 1"]) -> Float[Tensor, "*bs encoded"]:
        """Times as in [-1, 1], encoded."""
        return octave_encoding(2 * (times - 0.5), self.octaves)


class _Room(nn.Module):
    """Density and colour of places: eight layers, the encoded point joined again before the fifth, and one without
    activation behind them; then one with what is per ray, for the colour."""

    def __init__(self, positions: int, per_ray: int, width: int, branch: int):
        super().__init__()
        self.positions = positions
        for layer in range(1, 9):
            inputs = positions if layer == 1 else positions + width if layer == 5 else width
            setattr(self, f"xyz_encoding_{layer}", nn.Sequential(nn.Linear(inputs, width), nn.ReLU()))
        self.xyz_encoding_final = nn.Linear(width, width)
        self.dir_encoding = nn.Sequential(nn.Linear(width + per_ray, branch), nn.ReLU())
        self.static_sigma = nn.Sequential(nn.Linear(width, 1), nn.Softplus())
        self.static_rgb = nn.Sequential(nn.Linear(branch, 3), nn.Sigmoid())

    def trunk(self, encoded: Float[Tensor, "*bs positions"]) -> Float[Tensor, "*bs width"]:
        """Hidden features of encoded points, before the final layer."""
        hidden = encoded
        for layer in range(1, 9):
            linear = getattr(self, f"xyz_encoding_{layer}")[0]
            hidden = F.relu(linear(torch.cat((encoded, hidden), -1) if layer == 5 else hidden), inplace=True)
        return hidden

    def behind_final(
        self, linear: nn.Linear, hidden: Float[Tensor, "rays samples width"], per_ray: Float[Tensor, "rays dim"]
    ) -> Float[Tensor, "rays samples out"]:
        """A linear layer on [final features, what is per ray].

        The final layer has no activation: two linear layers in a row are one, whose weights are their product, and
        what is per ray adds a term per ray.
        """
        width = hidden.shape[-1]
        final, weight = self.xyz_encoding_final, linear.weight[:, :width]
        bias = F.linear(per_ray, linear.weight[:, width:], linear.bias) + F.linear(final.bias, weight)
        return F.linear(hidden, weight @ final.weight) + bias[:, None]

    def static_encoding(
        self, hidden: Float[Tensor, "rays samples width"], per_ray: Float[Tensor, "rays dim"]
    ) -> Float[Tensor, "rays samples branch"]:
        """What the static layer's colour is read from."""
        linear = self.dir_encoding[0]
        assert isinstance(linear, nn.Linear)
        return F.relu(self.behind_final(linear, hidden, per_ray), inplace=True)


class CoarseNetwork(_Room):
    """Density and colour of places, the same at all times.

    Args:
        positions: Length of an encoded point.
        per_ray: Length of an encoded direction.
        width: Width of the trunk.
        branch: Width of the colour's layer.
    """

    def forward(
        self, positions: Float[Tensor, "rays samples positions"], directions: Float[Tensor, "rays directions"] | None
    ) -> tuple[Float[Tensor, "rays samples"], Float[Tensor, "rays samples 3"] | None]:
        """Density at encoded points, and colours where encoded directions are given."""
        hidden = self.trunk(positions)
        density = self.static_sigma(hidden)[..., 0]
        if directions is None:
            return density, None
        return density, self.static_rgb(self.static_encoding(hidden, directions))


class FineNetwork(_Room):
    """The three layers: static on place, direction and appearance, dynamic on place and time, actor before the camera.

    Args:
        positions: Length of an encoded point.
        directions: Length of an encoded direction.
        appearance: Length of an appearance code.
        time: Length of a time code.
        width: Width of the trunk.
        branch: Width of the branches.
    """

    def __init__(self, positions: int, directions: int, appearance: int, time: int, width: int, branch: int):
        super().__init__(positions, directions + appearance, width, branch)
        for name in ("transient", "person"):
            # The actor's branch is as wide as the dynamic one; what its inputs do not fill is zero.
            layers: list[nn.Module] = [nn.Linear(width + time, branch), nn.ReLU()]
            for _ in range(3):
                layers += [nn.Linear(branch, branch), nn.ReLU()]
            setattr(self, f"{name}_encoding", nn.Sequential(*layers))
            setattr(self, f"{name}_sigma", nn.Sequential(nn.Linear(branch, 1), nn.Softplus()))
            setattr(self, f"{name}_rgb", nn.Sequential(nn.Linear(branch, 3), nn.Sigmoid()))
            setattr(self, f"{name}_beta", nn.Sequential(nn.Linear(branch, 1), nn.Softplus()))

    def forward(
        self,
        positions: Float[Tensor, "rays samples positions"],
        directions: Float[Tensor, "rays directions"],
        appearance: Float[Tensor, "rays appearance"],
        time: Float[Tensor, "rays time"],
        camera_positions: Float[Tensor, "rays samples positions"] | None,
        layers: Sequence[Layer] = LAYERS,
    ) -> dict[Layer, LayerSamples]:
        """The asked layers from encoded points, directions and codes; the actor's needs the encoded camera points."""
        found: dict[Layer, LayerSamples] = {}
        if "static" in layers or "dynamic" in layers:
            hidden = self.trunk(positions)
            if "static" in layers:
                encoding = self.static_encoding(hidden, torch.cat((directions, appearance), -1))
                found["static"] = LayerSamples(self.static_sigma(hidden)[..., 0], self.static_rgb(encoding), encoding)
            if "dynamic" in layers:
                linear: nn.Linear = self.transient_encoding[0]  # pyright: ignore[reportAssignmentType,reportIndexIssue]
                found["dynamic"] = self._moving("transient", self.behind_final(linear, hidden, time))
        if "actor" in layers:
            assert camera_positions is not None
            linear = self.person_encoding[0]  # pyright: ignore[reportAssignmentType,reportIndexIssue]
            places = camera_positions.shape[-1]
            per_ray = F.linear(time, linear.weight[:, places : places + time.shape[-1]], linear.bias)
            first = F.linear(camera_positions, linear.weight[:, :places]) + per_ray[:, None]
            found["actor"] = self._moving("person", first)
        return found

    def _moving(self, name: str, first: Float[Tensor, "rays samples branch"]) -> LayerSamples:
        """A moving layer from what its branch's first linear layer has given."""
        encoding = F.relu(first, inplace=True)
        for module in getattr(self, f"{name}_encoding")[2:]:
            encoding = F.relu(encoding, inplace=True) if isinstance(module, nn.ReLU) else module(encoding)
        sigma, rgb, beta = (getattr(self, f"{name}_{output}") for output in ("sigma", "rgb", "beta"))
        return LayerSamples(sigma(encoding)[..., 0], rgb(encoding), encoding, beta(encoding)[..., 0])


def octave_encoding(values: Float[Tensor, "*bs dim"], octaves: int) -> Float[Tensor, "*bs encoded"]:
    """[x, sin(x), cos(x), sin(2 x), cos(2 x), ..., cos(2^(octaves - 1) x)], each block of all coordinates (NeRF).

    Without pi and in the scene's own units, as in the published code. Nothing is learnt through it.
    """
    with torch.no_grad():
        dim = values.shape[-1]
        encoded = values.new_empty(*values.shape[:-1], _encoded(dim, octaves))
        encoded[..., :dim] = values
        blocks = encoded[..., dim:].unflatten(-1, (octaves, 2, dim))
        scaled = values[..., None, :] * octave_scales(octaves, values.device).to(values)[:, None]
        torch.sin(scaled, out=blocks[..., 0, :])
        torch.cos(scaled, out=blocks[..., 1, :])
        return encoded


def octave_scales(octaves: int, device: torch.device | str = "cpu") -> Float[Tensor, "{octaves}"]:
    """Factors 1, 2, 4, ... of the octaves."""
    return 2.0 ** torch.arange(octaves, device=device)


def _encoded(dim: int, octaves: int) -> int:
    """Length of what `octave_encoding` gives."""
    return dim * (2 * octaves + 1)
