"""Views as the viewer has rendered them, kept so that another question about the same view renders nothing."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.model_components import renderers
from torch import Tensor

from divff_nerfstudio.card import free_bytes, wait_for
from divff_nerfstudio.fields.layers import LAYERS, Layer
from divff_nerfstudio.models.view import EVERYTHING, FEATURES, RenderedView, Renderer
from divff_nerfstudio.query import QueryResult

MAX_DECODED = 160 * 2**20
"""Bytes of a view's features of a kind up to which they are kept; larger ones are decoded anew at each question."""
_KEPT_SHARE = 1 / 8
"""On a card, instead: share of the memory that is free when the view is rendered."""
KEPT_VIEWS = 2
"""Views kept for each client."""


class ViewedModel(Renderer, Protocol):
    """What is used of a model."""

    @property
    def device(self) -> torch.device:
        """Where it renders."""
        ...

    @property
    def available(self) -> Collection[str]:
        """What of `EVERYTHING` it can render at present."""
        ...


@dataclass
class Visibility:
    """Which moving layers are left out of pictures, set in the panel."""

    hide_actor: bool = False
    """Render the scene without the camera wearer."""
    hide_dynamic: bool = False
    """Render the scene without what moves."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that are seen."""
        hidden = {"actor": self.hide_actor, "dynamic": self.hide_dynamic}
        return tuple(layer for layer in LAYERS if not hidden.get(layer, False))


@dataclass(eq=False)
class AnsweredView(RenderedView):
    """A rendered view, and what was asked about it."""

    asked: frozenset[str] = frozenset()
    """What it was rendered for."""
    available: frozenset[str] = frozenset()
    """What it could have been rendered for."""
    box: Any = None
    """Part of the scene that it shows, if not all of it."""
    answer: QueryResult | None = None
    """What was last found in it."""

    @property
    def featured(self) -> bool:
        """Whether it has features, or could have been rendered with some."""
        return FEATURES in self.available

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Its pictures in the viewer's order. Where one was not rendered, as nobody looks at it, the colours stand in:
        its name can be chosen."""
        names = (name for name in EVERYTHING if name in self.available and name != FEATURES)
        return {name: self.pictures.get(name, self.pictures["rgb"]) for name in names}


class ViewCache:
    """Renders for nerfstudio's viewer, and keeps what was rendered.

    The viewer renders at a low resolution whenever anything was changed and at the full one some time later. `outputs`
    does so for it: a view that has not changed is not rendered again, and answers requests for lower resolutions, too.

    Args:
        model: Renders the views.
        visibility: Layers to leave out.
        state: What views depend on beside that and the camera.
        answer: Outputs to add to a view.
        seen: Called with the client and its view after each answer.
        client: The client that the calling thread renders for.
        wanted: Names of the outputs that somebody looks at, "rgb" among them; of `EVERYTHING`, no others are rendered.

    Attributes:
        rendered: How many of the clients' views have been rendered.
        rays_per_second: How fast, on average; 0 before the first one.
    """

    def __init__(
        self,
        model: ViewedModel,
        visibility: Visibility,
        state: Callable[[], Hashable],
        answer: Callable[[AnsweredView], dict[str, Tensor]],
        seen: Callable[[int, AnsweredView], None],
        client: Callable[[], int],
        wanted: Callable[[], Collection[str]],
    ):
        self._model, self._visibility, self._state = model, visibility, state
        self._answer, self._seen, self._client, self._wanted = answer, seen, client, wanted
        self._kept: dict[int, list[tuple[Hashable, AnsweredView]]] = {}
        self._busy: dict[int, frozenset[str]] = {}
        self.rendered = 0
        self.rays_per_second = 0.0

    def outputs(self, camera: Cameras, obb_box: Any = None) -> dict[str, Tensor]:
        """A view's pictures and what the question adds to them, for the viewer's render threads.

        Args:
            camera: One camera; it takes the resolution of the view that answers for it.
            obb_box: Part of the scene to render, if not all of it.
        """
        known = camera.to("cpu")  # at once: each number that is read from a card is waited for
        client, key = self._client(), self._key(known, obb_box)
        view = self.kept(client, key, known)
        if view is None:
            self._busy[client] = asked = self._asked()
            try:
                start = time.perf_counter()
                view = self.render(known, asked, obb_box)
                wait_for(view.pictures["rgb"].device)
                self._measure(view.height * view.width / max(time.perf_counter() - start, 1e-6))
                self.rendered += 1
            finally:
                # Before the question is read: who changes it later sees that this view will not be answered anew.
                self._busy.pop(client, None)
        else:
            take_resolution(camera, view.camera)
        self._keep(client, key, view)
        outputs = {**view.outputs, **self._answer(view)}
        self._seen(client, view)
        return outputs

    def render(
        self, camera: Cameras, outputs: Collection[str], obb_box: Any = None, max_decoded: int | None = None
    ) -> AnsweredView:
        """Renders a view, whether or not it is kept. The caller holds the training lock.

        Args:
            camera: One camera.
            outputs: What is asked for.
            obb_box: Part of the scene to render, if not all of it.
            max_decoded: Bytes of features that the view keeps once they are decoded; None: as memory allows.
        """
        available = frozenset(self._model.available)
        found = self._model.render(camera, self._visibility.layers, obb_box, outputs)
        found.features.kept_bytes = max_kept(self._model.device) if max_decoded is None else max_decoded
        return AnsweredView(found.camera, found.pictures, found.features, frozenset(outputs), available, obb_box)

    def feature(self, view: AnsweredView) -> None:
        """Gives a view the features that it was rendered without, where there are any. The caller holds the lock."""
        if view.featured and FEATURES not in view.asked:
            view.features = self.render(view.camera, {FEATURES}, view.box).features
            view.asked |= {FEATURES}

    def _measure(self, speed: float) -> None:
        """Takes the speed of a picture that a client has waited for into the mean."""
        self.rays_per_second = 0.7 * self.rays_per_second + 0.3 * speed if self.rays_per_second else speed

    def _asked(self) -> frozenset[str]:
        """What a view is rendered for at present: what is looked at decides."""
        return frozenset(self._wanted()) & frozenset(self._model.available)

    def at_work(self, client: int) -> bool:
        """Whether a client's view is being rendered."""
        return client in self._busy

    def will_answer(self, client: int) -> bool:
        """Whether a client's view is being rendered, and for all that is wanted now, so that it will answer that."""
        under_way = self._busy.get(client)
        return under_way is not None and under_way >= self._asked()

    def latest(self, client: int) -> AnsweredView | None:
        """What a client saw last."""
        kept = self._kept.get(client)
        return kept[0][1] if kept else None

    def forget(self, client: int) -> None:
        """Drops the views of a client that has gone."""
        self._kept.pop(client, None)

    def kept(self, client: int, key: Hashable, camera: Cameras) -> AnsweredView | None:
        """The kept view that shows what is asked for, at that resolution or a higher one."""
        height, width = int(camera.height.flatten()[0]), int(camera.width.flatten()[0])
        asked = self._asked()
        for known, view in self._kept.get(client, ()):
            # Sizes are whole numbers of pixels, so small pictures of one view differ a little in shape.
            same_shape = abs(width / height - view.width / view.height) <= 1.5 / height
            if known == key and view.height >= height and same_shape and view.asked >= asked:
                return view
        return None

    def _keep(self, client: int, key: Hashable, view: AnsweredView) -> None:
        kept = self._kept.get(client, ())
        others = [(known, old) for known, old in kept if known != key or not old.asked <= view.asked]
        self._kept[client] = [(key, view), *others][:KEPT_VIEWS]

    def _key(self, camera: Cameras, obb_box: Any) -> Hashable:
        """What tells one view from another, its resolution left out."""
        times = camera.times
        box = None if obb_box is None else tuple(tuple(part.flatten().tolist()) for part in vars(obb_box).values())
        behind = renderers.BACKGROUND_COLOR_OVERRIDE
        colour = tuple(behind.flatten().tolist()) if isinstance(behind, Tensor) else None
        time = None if times is None else float(times.flatten()[0])
        return viewpoint(camera), time, box, colour, self._visibility.layers, self._state()


def max_kept(device: torch.device) -> int:
    """Bytes of a view's features up to which they are kept once they are decoded; of each kind."""
    free = free_bytes(device)
    return MAX_DECODED if free is None else int(_KEPT_SHARE * free)


def viewpoint(camera: Cameras) -> Hashable:
    """What tells one viewpoint from another, whatever the time and the resolution."""
    height = float(camera.height.flatten()[0])
    return (
        tuple(camera.camera_to_worlds.flatten().tolist()),
        round(float(camera.fy.flatten()[0]) / height, 5),
        int(camera.camera_type.flatten()[0]),
    )


def take_resolution(camera: Cameras, other: Cameras) -> None:
    """Gives a camera the resolution of another one of its viewpoint: nerfstudio casts its rays once more, for depth."""
    for name in ("fx", "fy", "cx", "cy", "height", "width"):
        setattr(camera, name, getattr(other, name).to(camera.device))


def small_camera(camera: Cameras, height: int, moment: float) -> Cameras:
    """The same camera at another time, in a picture of so many rows."""
    small = copy.deepcopy(camera)
    small.rescale_output_resolution(height / float(camera.height.flatten()[0]))
    small.times = torch.full_like(camera.fx.reshape(-1, 1), moment)
    return small
