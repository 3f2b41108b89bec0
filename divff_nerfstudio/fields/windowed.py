"""The default method's fields for a video in windows: one room, and moving layers for each window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from divff_nerfstudio.data.windows import Windows
from divff_nerfstudio.fields.layered import LayeredField, LayeredFieldConfig
from divff_nerfstudio.fields.layers import Layer, LayerSamples, SamplePoints
from divff_nerfstudio.fields.space import SceneSpace


class WindowedField(nn.Module):
    """A `LayeredField` for each window; all share the static layer and the proposal's room.

    It is asked as one `LayeredField` is, at times of the video, and answers by the window that it is turned to, whose
    fields know times from 0 at its beginning to 1 at its end: a second of video has the same capacity however long the
    video is.

    Args:
        config: Sizes of each window's fields.
        space: The scene's units.
        windows: The windows.

    Attributes:
        window: The window that it is turned to.
    """

    def __init__(self, config: LayeredFieldConfig, space: SceneSpace, windows: Windows):
        super().__init__()
        self.space, self.spans, self.window, self._windows = space, windows.spans, 0, windows
        self.windows = nn.ModuleList(LayeredField(config, space, len(frames)) for frames in windows.frames)
        first = self._of(0)
        for number in range(1, len(windows)):
            other = self._of(number)
            other.static = first.static
            other.proposal.room, other.proposal.room_network = first.proposal.room, first.proposal.room_network

    @property
    def span(self) -> tuple[float, float]:
        """Times at which the window begins and ends."""
        return self.spans[self.window]

    @property
    def time_dim(self) -> int:
        """Length of the time codes."""
        return self._now.time_dim

    def turn_to(self, window: int) -> None:
        """Has another window answer."""
        self.window = window

    def proposal(
        self,
        positions: Float[Tensor, "points 3"],
        camera_positions: Float[Tensor, "points 3"],
        times: Float[Tensor, "points 1"],
    ) -> tuple[Float[Tensor, "points"], Float[Tensor, "points"]]:
        """See `ProposalField`."""
        return self._now.proposal(positions, camera_positions, self._within(times))

    def forward(
        self, points: SamplePoints, layers: Sequence[Layer], all_at_rest: bool = False
    ) -> dict[Layer, LayerSamples]:
        """See `LayeredField.forward`."""
        return self._now(replace(points, times=self._within(points.times)), layers, all_at_rest)

    def carried_density(self, points: SamplePoints) -> Float[Tensor, "rays samples"]:
        """See `LayeredField.carried_density`."""
        return self._now.carried_density(replace(points, times=self._within(points.times)))

    def dynamic_density(
        self, positions: Float[Tensor, "points 3"], times: Float[Tensor, "points moments"]
    ) -> Float[Tensor, "points moments"]:
        """See `LayeredField.dynamic_density`."""
        return self._now.dynamic_density(positions, self._within(times))

    def dynamic_at(
        self, positions: Float[Tensor, "points 3"], times: Float[Tensor, "points moments"]
    ) -> tuple[Float[Tensor, "points moments"], Float[Tensor, "points moments 3"]]:
        """See `LayeredField.dynamic_at`; each moment is asked of the window that tells of it."""
        density, colours = torch.zeros_like(times), times.new_zeros(*times.shape, 3)
        windows = torch.from_numpy(self._windows.at(times.detach().cpu().numpy())).to(times.device)
        for number in windows.unique().tolist():
            of_it = windows == number
            there, its_times = positions[of_it.nonzero()[:, 0]], self._within(times[of_it], number)[:, None]
            found, rgb = self._of(number).dynamic_at(there, its_times)
            density[of_it], colours[of_it] = found[:, 0], rgb[:, 0]
        return density, colours

    def shadow(
        self, camera_positions: Float[Tensor, "rays 3"], times: Float[Tensor, "rays 1"]
    ) -> Float[Tensor, "rays"]:
        """See `LayeredField.shadow`."""
        return self._now.shadow(camera_positions, self._within(times))

    def time_code(self, times: Float[Tensor, "rays 1"]) -> Float[Tensor, "rays dim"]:
        """See `LayeredField.time_code`."""
        return self._now.time_code(self._within(times))

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """See `LayeredField.param_groups`; what is shared is named once."""
        each = [self._of(number).param_groups() for number in range(len(self.windows))]
        return {name: list(dict.fromkeys(one for groups in each for one in groups[name])) for name in each[0]}

    @property
    def _now(self) -> LayeredField:
        return self._of(self.window)

    def _of(self, number: int) -> LayeredField:
        field = self.windows[number]
        assert isinstance(field, LayeredField)
        return field

    def _within(self, times: Float[Tensor, "*bs"], number: int | None = None) -> Float[Tensor, "*bs"]:
        """Times of the video as those of a window, by default of the one that it is turned to."""
        first, last = self.spans[self.window if number is None else number]
        return ((times - first) / (last - first)).clamp(0, 1)
