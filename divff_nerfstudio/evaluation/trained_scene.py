"""A trained scene as evaluation sees it: a model, its frames and its query; views of it, which can be asked."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.model_components.renderers import background_color_override_context
from torch import Tensor

from divff_nerfstudio.calibration import Calibration, calibration
from divff_nerfstudio.data.annotations import GroundTruth, ground_truth
from divff_nerfstudio.data.scene import SceneFolder
from divff_nerfstudio.evaluation.answers import Answer, answer_about
from divff_nerfstudio.evaluation.options import EvaluationError, MovingLayer
from divff_nerfstudio.fields.layers import LAYERS, Layer
from divff_nerfstudio.heartbeat import beat
from divff_nerfstudio.models.view import COMPOSITED, FEATURES, RenderedView, Renderer
from divff_nerfstudio.query import Query, QueryError
from divff_nerfstudio.viewer.camera_paths import Crop

if TYPE_CHECKING:
    from divff_nerfstudio.datamanager import DivFFDataManager
    from divff_nerfstudio.features.store import FeatureStore

ANSWERED = (*COMPOSITED, FEATURES)
"""What a view is rendered for that shall be asked: what answers are, and where they are."""


@dataclass(eq=False)
class AskedView(RenderedView):
    """A rendered view that can be asked, which renders nothing: its pictures lie on the CPU.

    The first question decodes its features, others do not.
    """

    query: Query
    """Gives relevancies."""
    _decoded: dict[str, Tensor] = field(default_factory=dict)

    def embeddings(self, kind: str) -> Float[Tensor, "height width dim"] | None:
        """Unit-length features of a kind, decoded where they are codes; None if the model has none."""
        if kind not in self._decoded:
            if kind not in self.features:
                return None
            with torch.no_grad():
                self._decoded[kind] = self.query.decode(self.features[kind], kind)
        return self._decoded[kind]

    @cached_property
    def points(self) -> Float[Tensor, "height width 3"]:
        """Where each pixel's ray meets the scene, in world coordinates; depth is the distance along the unit ray."""
        rays = self.camera.generate_rays(camera_indices=0, keep_shape=True)
        return rays.origins.cpu() + rays.directions.cpu() * self.pictures["depth"]

    def relevancies(self, kind: str, phrases: Sequence[str]) -> Float[np.ndarray, "height width phrases"]:
        """Relevancy of each pixel to each phrase.

        Args:
            kind: Which features answer, "image" or "video".
            phrases: What to look for.

        Raises:
            QueryError: If there are no such features, or their text encoder does not work.
        """
        features = self.embeddings(kind)
        if features is None:
            raise QueryError(
                f"This run has no trained {kind} features: run `divff extract`, and train the scene again."
            )
        return self.query.relevancies(features, kind, phrases, decoded=True).cpu().float().numpy()

    def ask(self, phrase: str, kind: str = "image", threshold: float | None = None) -> Answer:
        """Where a phrase is, or can be done, in this view.

        Args:
            phrase: What to look for.
            kind: Which features answer, "image" or "video".
            threshold: Relevancy above which a pixel belongs to the mask; None: DIV-FF's for that kind.

        Raises:
            QueryError: If there are no such features, or their text encoder does not work.
        """
        return answer_about(
            phrase, kind, self.relevancies(kind, [phrase])[..., 0], self.pictures, self.points, threshold
        )


class TrainedScene:
    """A trained scene: frames, cameras, ground truth, and views at any pose and time.

    Args:
        model: Renders the views.
        datamanager: Gives the frames and cameras.
        query: Gives relevancies of phrases.
    """

    def __init__(self, model: Renderer, datamanager: DivFFDataManager, query: Query):
        self.model, self.datamanager, self.query = model, datamanager, query
        self._calibrations: dict[str, Calibration | None] = {}
        self._calibrating = Lock()
        self.scene: SceneFolder = datamanager.train_dataset.metadata["scene"]

    @cached_property
    def trained(self) -> list[int]:
        """Indices of the frames that were trained on."""
        return sorted(int(i) for i in self.datamanager.train_dataset.metadata["indices"])

    @cached_property
    def cameras(self) -> Cameras:
        """Cameras of all frames in the order of their indices, whichever split they belong to."""
        scene, first = self.scene, self.datamanager.train_dataset.cameras[:1]
        times = scene.times(self.datamanager.dataparser.config.time_rows)  # pyright: ignore[reportAttributeAccessIssue]
        return Cameras(
            camera_to_worlds=torch.from_numpy(scene.camera_to_worlds),
            width=scene.width,
            height=scene.height,
            times=torch.from_numpy(times)[:, None],
            **{name: getattr(first, name).expand(len(scene), 1).cpu() for name in ("fx", "fy", "cx", "cy")},
        )

    @cached_property
    def times(self) -> Float[np.ndarray, "frames"]:
        """Time of each frame."""
        assert self.cameras.times is not None
        return self.cameras.times[:, 0].numpy()

    @property
    def stores(self) -> Mapping[str, FeatureStore]:
        """The scene's feature stores by kind."""
        return getattr(self.datamanager, "feature_stores", {})

    def calibration(self, kind: str) -> Calibration | None:
        """What fits answers of a kind of features to the scene; None where its stored features do not tell."""
        with self._calibrating:
            if kind not in self._calibrations:
                store = self.stores.get(kind)
                self._calibrations[kind] = None if store is None else calibration(self.query, kind, store)
            return self._calibrations[kind]

    @cached_property
    def truth(self) -> GroundTruth | None:
        """What only a renderer of the scene knows, if there is one."""
        return ground_truth(self.scene)

    @property
    def standing_queries(self) -> list[tuple[str, str]]:
        """Kind of features and phrase of each query of the run's configuration; none where it cannot be answered."""
        if not self.query.active:
            return []
        return [(self.query.config.features, phrase) for phrase in self.query.phrases]

    def nearest_trained(self, index: int) -> int:
        """Index of the training frame next in time to a frame, of two as near the earlier."""
        ids, own = self.scene.frame_ids[self.trained], self.scene.frame_ids[index]
        later = int(np.searchsorted(ids, own))
        around = range(max(later - 1, 0), min(later + 1, len(ids)))
        return self.trained[min(around, key=lambda i: (abs(int(ids[i] - own)), i))]

    def frame_at(self, time: float) -> int:
        """Index of the frame next in time, of two as near the earlier."""
        return int(np.abs(self.times - time).argmin())

    def camera_at(self, viewpoint: int, time: float) -> Cameras:
        """The camera of a frame, at another time.

        Args:
            viewpoint: Index of the frame.
            time: In the model's unit, 0 to 1.
        """
        camera = self.cameras[viewpoint : viewpoint + 1]
        camera.times = torch.tensor([[time]], dtype=torch.float32)
        return camera

    def view(
        self,
        frame: int | None = None,
        time: float | None = None,
        camera: Cameras | None = None,
        hide: Sequence[MovingLayer] = (),
        outputs: Collection[str] = ANSWERED,
    ) -> AskedView:
        """Renders a view.

        Args:
            frame: Id of the frame whose camera and time are taken, where the others do not say otherwise.
            time: Time, 0 to 1; without a frame, the camera is that of the frame next in time.
            camera: The camera; one with a time keeps it, unless `time` is given.
            hide: Layers to leave out.
            outputs: As for `render`.

        Raises:
            EvaluationError: If neither a frame nor a time nor a camera with a time is given.
            SceneError: If the scene has no such frame.
        """
        if time is None and frame is None and (camera is None or camera.times is None):
            raise EvaluationError("A view needs a moment: give a time from 0 to 1, or the id of a frame.")
        if frame is not None:
            index = self.scene.index_of(frame)
            moment = float(self.times[index]) if time is None else time
        elif time is not None:
            index, moment = self.frame_at(time), time
        else:
            return self.render(camera, hide, outputs=outputs)  # pyright: ignore[reportArgumentType]
        if camera is None:
            return self.render(self.camera_at(index, moment), hide, outputs=outputs)
        camera = camera[:]
        camera.times = torch.tensor([[moment]], dtype=torch.float32)
        return self.render(camera, hide, outputs=outputs)

    def render(
        self,
        camera: Cameras,
        hide: Sequence[MovingLayer] = (),
        crop: Crop | None = None,
        outputs: Collection[str] = ANSWERED,
    ) -> AskedView:
        """Renders what a camera sees at its time, whatever a viewer's panel is set to.

        Args:
            camera: One camera, with a time.
            hide: Layers to leave out.
            crop: The part of the scene that is seen; None: all.
            outputs: What is asked for, of `models.view.EVERYTHING`; the rest is not rendered.
        """
        beat()
        layers: list[Layer] = [layer for layer in LAYERS if layer not in hide]
        behind = contextlib.nullcontext() if crop is None else background_color_override_context(crop.background)
        with behind:
            view = self.model.render(camera, layers, None if crop is None else crop.box, outputs)
        pictures = {name: picture.detach().cpu().float() for name, picture in view.pictures.items()}
        return AskedView(camera.to("cpu"), pictures, view.features, self.query)
