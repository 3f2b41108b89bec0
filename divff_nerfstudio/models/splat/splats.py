"""Gaussians of a layer as they are at a moment, and when and from where that is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from divff_nerfstudio.card import is_card


@dataclass
class Moment:
    """When and from where Gaussians are looked at."""

    time: Float[Tensor, ""]
    """In [0, 1]."""
    rotation: Float[Tensor, "3 3"]
    """Columns right, up and back of the camera, in the world."""
    origin: Float[Tensor, "3"]
    """Position of the camera, in lengths of the scene."""
    turn: Float[Tensor, "4"]
    """The rotation as a quaternion, w first."""
    known_time: float
    """The time as a number on the host."""


@dataclass
class Splats:
    """Gaussians of a layer that live at a moment, in the world."""

    means: Float[Tensor, "gaussians 3"]
    """Centres, in lengths of the scene."""
    quats: Float[Tensor, "gaussians 4"]
    """Rotations, w first, of any length."""
    scales: Float[Tensor, "gaussians 3"]
    """Standard deviations, in lengths of the scene."""
    opacities: Float[Tensor, "gaussians"]
    """In [0, 1], at this moment."""
    colours: Float[Tensor, "gaussians 3"]
    """As seen from the camera, not below 0."""
    codes: Float[Tensor, "gaussians code"]
    """What features are decoded from."""
    uncertainties: Float[Tensor, "gaussians"]
    """Standard deviation of the colour; 0 for what is static."""
    ids: Int[Tensor, "gaussians"]
    """Rows of the layer's parameters."""
    seen: Bool[Tensor, "gaussians"] | None = None
    """Which of them are to be seen, where the others could not be taken away; None: all."""

    def __len__(self) -> int:
        return len(self.ids)

    def without_hidden(self) -> Splats:
        """Those that are to be seen, the others taken away, which makes the host wait."""
        if self.seen is None:
            return self
        return Splats(**{name: value[self.seen] for name, value in vars(self).items() if value is not None})

    def select(self, chosen: Bool[Tensor, "gaussians"], moment: Moment) -> Splats:
        """Some of the Gaussians.

        Where counting them would keep the host waiting, all stay, and the others are put behind the camera, where the
        rasteriser leaves them out.
        """
        if counts_at_once(chosen):
            return Splats(**{name: value[chosen] for name, value in vars(self).items() if value is not None})
        behind = moment.origin + moment.rotation[:, 2]
        seen = chosen if self.seen is None else chosen & self.seen
        return replace(self, means=torch.where(chosen[:, None], self.means, behind), seen=seen)


def mean_opacity(layers: Iterable[Splats]) -> Float[Tensor, ""] | None:
    """Mean opacity of the Gaussians of several layers that are to be seen; None if there are none."""
    layers = [each for each in layers if len(each)]
    if not layers:
        return None
    opacities = torch.cat([each.opacities for each in layers])
    if all(each.seen is None for each in layers):
        return opacities.mean()
    seen = torch.cat([each.ids >= 0 if each.seen is None else each.seen for each in layers])
    return (opacities * seen).sum() / seen.sum().clamp_min(1)


def counts_at_once(values: Tensor) -> bool:
    """Whether it is known at once how many of some values there are: not on a card, for which one has to wait."""
    return not is_card(values.device)
