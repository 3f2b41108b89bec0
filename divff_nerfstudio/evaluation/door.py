"""The door for notebooks and robots: a trained run as a scene that can be looked at and asked, NumPy in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from divff_nerfstudio import announcements
from divff_nerfstudio.data.annotations import resize_nearest
from divff_nerfstudio.evaluation.answers import Answer, judged
from divff_nerfstudio.evaluation.looks import Looked, things_of
from divff_nerfstudio.evaluation.meant import Meant, meant
from divff_nerfstudio.evaluation.naming import name_things
from divff_nerfstudio.evaluation.options import THINGS, MovingLayer
from divff_nerfstudio.evaluation.runs import load_run
from divff_nerfstudio.evaluation.trained_scene import ANSWERED, AskedView, TrainedScene
from divff_nerfstudio.models.view import COMPOSITED
from divff_nerfstudio.objects.diary import Clock, Event, diary
from divff_nerfstudio.objects.things import Thing, Things
from divff_nerfstudio.objects.whereabouts import Whereabouts, whereabouts
from divff_nerfstudio.query import QueryError
from divff_nerfstudio.run_folder import KEPT


@dataclass(frozen=True)
class Picture:
    """A rendered view."""

    rgb: Float[np.ndarray, "height width 3"]
    """Colours, 0 to 1."""
    depth: Float[np.ndarray, "height width"]
    """Distance along the rays, scene units."""
    layers: dict[str, Float[np.ndarray, "height width"]]
    """Shares of the layers "static", "dynamic" and "actor" in each pixel."""
    points: Float[np.ndarray, "height width 3"]
    """Where each pixel's ray meets the scene, world coordinates."""


class Scene:
    """A trained run, opened by `open_run`.

    Moments are given as the id of a frame (a whole number) or as a time from 0 to 1 (a broken one).

    Args:
        trained: The scene.
        kept: File in which rendered depths are kept; None: nowhere.
        looked: Called between frames that are rendered to find things: with how many are done, of how many.

    Attributes:
        names: What things may be called, to be set before they are first asked for; none: common things that the scene
            is sure to have.
    """

    def __init__(self, trained: TrainedScene, kept: Path | None = None, looked: Looked | None = None):
        self.trained = trained
        self.names: tuple[str, ...] = ()
        self._kept, self._looked = kept, looked

    @property
    def frame_ids(self) -> list[int]:
        """Ids of the scene's frames, ascending."""
        return [int(i) for i in self.trained.scene.frame_ids]

    @property
    def camera_to_worlds(self) -> Float[np.ndarray, "frames 3 4"]:
        """The frames' poses: columns right, up, back, position (OpenGL)."""
        return self.trained.scene.camera_to_worlds

    def frame(self, frame_id: int) -> np.ndarray:
        """A frame as it was filmed, (height, width, 3) of whole numbers up to 255."""
        return self.trained.scene.frame(self.trained.scene.index_of(frame_id))

    def render(
        self,
        moment: int | float,
        camera_to_world: Float[np.ndarray, "3 4"] | None = None,
        hide: Sequence[MovingLayer] = (),
    ) -> Picture:
        """What a camera sees.

        Args:
            moment: Id of a frame, or a time.
            camera_to_world: Pose of the camera (OpenGL), with the frames' own lens; None: that of the frame.
            hide: Layers to leave out: "actor", "dynamic".
        """
        view = self._view(moment, camera_to_world, hide, COMPOSITED)
        outputs = {name: picture.numpy() for name, picture in view.pictures.items()}
        moving = {layer: outputs[f"mask_{layer}"][..., 0] for layer in ("dynamic", "actor")}
        static = np.maximum(outputs["accumulation"][..., 0] - sum(moving.values()), 0)
        return Picture(outputs["rgb"], outputs["depth"][..., 0], {"static": static} | moving, view.points.numpy())

    def ask(
        self,
        phrase: str,
        moment: int | float,
        camera_to_world: Float[np.ndarray, "3 4"] | None = None,
        features: str = THINGS,
        hide: Sequence[MovingLayer] = (),
    ) -> Answer:
        """Where a phrase is in what a camera sees, and whether it is in the scene at all.

        Args:
            phrase: What to look for.
            moment: Id of a frame, or a time.
            camera_to_world: As for `render`.
            features: Which features answer, "image" (what is it?) or "video" (what can be done there?).
            hide: As for `render`.

        Returns:
            Among others its `state`, `mask`, `relevancy`, `point` and `score`.

        Raises:
            QueryError: If there are no such features, or their text encoder does not work.
        """
        view = self._view(moment, camera_to_world, hide, ANSWERED)
        return judged(view.ask(phrase, features), view, self.trained.calibration(features))

    @cached_property
    def found(self) -> Things:
        """All things with what is needed to look into them; found at the first use.

        Where the text encoder does not work, they have no names, unless names were asked for.

        Raises:
            EvaluationError: If there are no stored segments to group.
            QueryError: If names were asked for, and the text encoder does not work.
        """
        things = things_of(self.trained, self._kept, self._looked)
        try:
            name_things(things, self.trained.calibration(THINGS), self.names)
        except QueryError as error:
            if self.names:
                raise
            CONSOLE.print(f"[yellow]Things have no names: {escape(str(error))}", soft_wrap=True)
        return things

    def objects(self) -> list[Thing]:
        """The things of the scene, those that most frames show first."""
        return self.found.things

    def diary(self) -> list[Event]:
        """What was moved, in the order of time."""
        return diary(self.found)

    def whereabouts(self, thing: Thing, moment: int | float) -> Whereabouts:
        """Where a thing is at a moment, since when, and where it was before that.

        Args:
            thing: One of `objects`.
            moment: Id of a frame, or a time.
        """
        frame = isinstance(moment, (int, np.integer))
        return whereabouts(thing, self.trained.scene.index_of(int(moment)) if frame else self.trained.frame_at(moment))

    def clock(self, fps: float | None = None) -> Clock:
        """Tells the times of frames by their index.

        Args:
            fps: Frames of the video in a second; None: nothing is told in seconds.
        """
        scene = self.trained.scene
        return Clock(self.frame_ids, scene.video_numbers.tolist(), self.trained.times.tolist(), fps)

    def matching(self, phrase: str) -> list[Thing]:
        """The things that a phrase means: those that are as like it as the likeliest, or nearly so, and pass its
        threshold; none if the scene does not have what it names, or if that is no thing, as a hand.

        Raises:
            QueryError: If there are no such features, or their text encoder does not work.
        """
        return list(self.meant(phrase).things)

    def meant(self, phrase: str) -> Meant:
        """What a phrase means: its things, how it stands with it, and from which thing it is told apart.

        Raises:
            QueryError: As for `matching`.
        """
        return meant(phrase, self.found.things, self.trained.calibration(THINGS))

    def mask(self, thing: Thing, frame_id: int) -> Bool[np.ndarray, "height width"]:
        """The pixels of a frame that show a thing, at the frame's size."""
        index = self.trained.scene.index_of(frame_id)
        own = self.found.owners[index] == thing.number
        return resize_nearest(own, self.trained.scene.height, self.trained.scene.width)

    def _view(
        self,
        moment: int | float,
        camera_to_world: Float[np.ndarray, "3 4"] | None,
        hide: Sequence[MovingLayer],
        outputs: Sequence[str],
    ) -> AskedView:
        frame, time = (moment, None) if isinstance(moment, (int, np.integer)) else (None, float(moment))
        camera: Cameras | None = None
        if camera_to_world is not None:
            camera = self.trained.cameras[:1]
            camera.camera_to_worlds = torch.as_tensor(np.asarray(camera_to_world), dtype=torch.float32)[None, :3]
        return self.trained.view(frame=frame, time=time, camera=camera, hide=hide, outputs=outputs)


def open_run(load_config: Path | str, data: Path | str | None = None) -> Scene:
    """Opens a trained run.

    Args:
        load_config: The run's config.yml.
        data: Folder of its scene, if that is no longer where the config.yml says.

    Raises:
        DivffError: If it cannot be opened; the message says why, and what to do.
    """
    path = Path(load_config)
    with announcements.left_out():
        run = load_run(path, None if data is None else Path(data))
    trained = TrainedScene(run.pipeline.model, run.pipeline.datamanager, run.pipeline.query)
    return Scene(trained, kept_beside(path, run.step))


def kept_beside(load_config: Path, step: int) -> Path:
    """Where a run's rendered depths are kept.

    Args:
        load_config: The run's config.yml.
        step: Its checkpoint's step.
    """
    return load_config.resolve().parent / KEPT / f"looks-{step}.npz"
