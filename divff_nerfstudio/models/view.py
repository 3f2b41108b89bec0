"""A rendered view as a value: its pictures by name, and its features by kind, decoded when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from torch import Tensor

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.fields.layers import LAYERS, Layer
from divff_nerfstudio.rendering import Composite

PICTURES = (
    "rgb",
    "depth",
    "accumulation",
    "rgb_static",
    "rgb_dynamic",
    "rgb_actor",
    "mask_dynamic",
    "mask_actor",
    "mask_moving",
    "mask_moved",
    "uncertainty",
)
"""What a view can be rendered to, in the viewer's order. Depth is the distance along the unit ray, in scene units;
"mask_moved" leaves out of "mask_dynamic" what is yet to be moved, where a method can tell."""
COMPOSITED = ("rgb", "depth", "accumulation", "mask_dynamic", "mask_actor", "mask_moving")
"""Those that cost next to nothing where layers are composited anyway; each of the others is computed for itself."""
FEATURES = "features"
"""What is asked for where a view shall have features."""
FEATURES_PCA = "features_pca"
"""The image features as colours, in a basis that all views share."""
EVERYTHING = (*PICTURES, FEATURES_PCA, FEATURES)
"""All that can be asked for."""
_MAX_SIDE = 32768
_OVERSHOT = 0.2
"""Times leave 0 to 1 by less than this where splines run through times that lie within."""


class RenderError(DivffError):
    """A view cannot be rendered."""


class Features(Mapping[str, Float[Tensor, "height width dim"]]):
    """A view's features by kind, of unit length, each decoded when it is looked at.

    Args:
        kinds: The kinds that there are.
        decode: Makes a kind's features.

    Attributes:
        kept_bytes: Size up to which features are kept once they are decoded.
    """

    def __init__(self, kinds: Sequence[str] = (), decode: Callable[[str], Tensor] | None = None):
        self._kinds, self._decode, self.kept_bytes = tuple(kinds), decode, 0
        self._kept: dict[str, Tensor] = {}

    def __getitem__(self, kind: str) -> Float[Tensor, "height width dim"]:
        if kind in self._kept:
            return self._kept[kind]
        if kind not in self._kinds or self._decode is None:
            raise KeyError(kind)
        with torch.no_grad():
            decoded = self._decode(kind)
        if decoded.nbytes <= self.kept_bytes:
            self._kept[kind] = decoded
        return decoded

    def __contains__(self, kind: object) -> bool:
        return kind in self._kinds

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


@dataclass(eq=False)
class RenderedView:
    """What a camera sees."""

    camera: Cameras
    """The camera, as it was given."""
    pictures: dict[str, Float[Tensor, "height width channels"]]
    """Of `PICTURES` and "features_pca" those that were asked for, in that order."""
    features: Features
    """Features by kind, of unit length; none where they are untrained or were not asked for."""

    @property
    def outputs(self) -> dict[str, Float[Tensor, "height width channels"]]:
        """The pictures, by their former name."""
        return self.pictures

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.camera.height.flatten()[0])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.camera.width.flatten()[0])


class Renderer(Protocol):
    """What is used of a model by who looks at its views."""

    def render(
        self,
        camera: Cameras,
        layers: Collection[Layer] = ...,
        box: Any = None,
        outputs: Collection[str] = ...,
    ) -> RenderedView:
        """Renders a view."""
        ...


def checked_camera(camera: Cameras, kinds: Collection[CameraType] | None) -> Cameras:
    """A camera that can be rendered, its time within 0 to 1.

    Args:
        camera: One camera.
        kinds: Kinds that the method renders; None: all that nerfstudio casts rays of.

    Raises:
        RenderError: If it cannot.
    """
    kind = CameraType(int(camera.camera_type.flatten()[0]))
    if kinds is not None and kind not in kinds:
        names = " and ".join(each.name.lower() for each in kinds)
        raise RenderError(
            f"This method renders {names} cameras, not {kind.name.lower()} ones: choose another camera type, or a "
            "run of `ns-train divff`."
        )
    sides = [int(getattr(camera, name).flatten()[0]) for name in ("height", "width")]
    if not all(1 <= side <= _MAX_SIDE for side in sides):
        raise RenderError(
            f"A picture of {sides[1]}x{sides[0]} pixels cannot be rendered: give sizes from 1 to {_MAX_SIDE}."
        )
    numbers = torch.cat([getattr(camera, name).flatten() for name in ("camera_to_worlds", "fx", "fy", "cx", "cy")])
    if not bool(numbers.isfinite().all()) or not float(torch.cat((camera.fx, camera.fy)).min()) > 0:
        raise RenderError("A camera has numbers that are not finite, or no focal length: mend its file.")
    if camera.times is None:
        return camera
    time = float(camera.times.flatten()[0])
    if not -_OVERSHOT <= time <= 1 + _OVERSHOT:
        raise RenderError(f"A camera's time is {time:g}: give one from 0 to 1.")
    if not 0 <= time <= 1:
        camera = camera[...]
        camera.times = torch.full_like(camera.fx, min(max(time, 0.0), 1.0))
    return camera


def checked_layers(layers: Collection[Layer]) -> tuple[Layer, ...]:
    """The layers that are to be seen, in their order.

    Raises:
        RenderError: If the static one, before which the others are seen, is not among them.
    """
    if "static" not in layers or not set(layers) <= set(LAYERS):
        raise RenderError(
            f"Layers {', '.join(layers) or 'none'}: name static and those of dynamic and actor that are to be seen; "
            "the pictures rgb_dynamic and rgb_actor show one by itself."
        )
    return tuple(layer for layer in LAYERS if layer in layers)


def checked_outputs(outputs: Collection[str]) -> frozenset[str]:
    """What is asked for of a view.

    Raises:
        RenderError: If one of the names is none of `EVERYTHING`.
    """
    asked = frozenset((outputs,) if isinstance(outputs, str) else outputs)
    if unknown := sorted(asked - set(EVERYTHING)):
        raise RenderError(f"There is no output {', '.join(unknown)}: ask for some of {', '.join(EVERYTHING)}.")
    return asked


def pictures_of(
    wanted: Collection[str],
    composited: Composite,
    made: Mapping[str, Callable[[], Float[Tensor, "rays *channels"]]],
) -> dict[str, Float[Tensor, "rays channels"]]:
    """Those of `PICTURES` that are wanted, of rays, in [0, 1] except for depth; nothing else is computed.

    Args:
        wanted: Their names.
        composited: Whose masks are shown.
        made: What makes the others, by name; a layer that is not rendered has none, and is black.
    """
    rays = next(iter(composited.weights.values()))[:, 0]
    makers: dict[str, Callable[[], Tensor]] = {
        **{f"rgb_{layer}": lambda: rays.new_zeros(len(rays), 3) for layer in LAYERS},
        "mask_dynamic": lambda: composited.mask("dynamic"),
        "mask_actor": lambda: composited.mask("actor"),
        "mask_moving": lambda: composited.mask("dynamic") + composited.mask("actor"),
        "mask_moved": lambda: composited.mask("dynamic"),
        **made,
    }
    pictures = {}
    for name in PICTURES:
        if name in wanted:
            picture = makers[name]()
            picture = picture if picture.dim() > 1 else picture[:, None]
            pictures[name] = picture if name == "depth" else picture.clamp(0, 1)
    return pictures
