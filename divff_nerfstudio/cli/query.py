"""``divff query``: questions to a trained scene, without a viewer."""

from __future__ import annotations

import contextlib
import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.progress import track

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.cli.opening import open_scene
from divff_nerfstudio.cli.things import answers_when
from divff_nerfstudio.evaluation.options import THINGS, EvaluationError, Features, MovingLayer, asked_kind
from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.outputs import check_output_folder
from divff_nerfstudio.schema import Amount, Count, Positive, Share, Words

if TYPE_CHECKING:
    from divff_nerfstudio.evaluation.answers import Answer
    from divff_nerfstudio.evaluation.trained_scene import TrainedScene


@dataclass
class QueryCommandConfig:
    """Asks a trained scene without a viewer. Prints one JSON object on standard output, and writes each answer's
    relevancy (NPY and PNG), mask and overlay."""

    load_config: Path
    """The run's config.yml."""
    text: Annotated[tuple[Words, ...], Field(min_length=1)]
    """What to look for; "video: cut the bread" asks the other features than --features says."""
    output: Path
    """Folder for the pictures and arrays."""
    time: Optional[Share] = None  # noqa: UP045
    """The moment, 0 to 1; the camera is that of the frame next to it, unless told otherwise."""
    frame: Optional[Amount] = None  # noqa: UP045
    """Id of the frame whose camera and time are taken."""
    camera: Optional[Path] = None  # noqa: UP045
    """File of another camera: a camera path of nerfstudio's viewer (its first camera), or a JSON object with
    camera_to_world."""
    fixed: Optional[Amount] = None  # noqa: UP045
    """Id of the frame whose viewpoint is taken, at the time of --time or --frame."""
    features: Features = "image"
    """Which features answer."""
    threshold: Optional[Share] = None  # noqa: UP045
    """Relevancy above which a pixel belongs to the mask; by default one that fits the scene, which also
    tells whether the thing is in the scene at all."""
    hide: tuple[MovingLayer, ...] = ()
    """Layers to leave out: actor, dynamic."""
    over_time: bool = False
    """Follow each thing over the whole video: when it moves, and where it is, as a plot and CSV."""
    when: bool = False
    """Tell where the thing was at all times: its spans and places, from the scene's things (see `divff objects`)."""
    before: Optional[Positive] = None  # noqa: UP045
    """With --when, where it was last seen before so many seconds (with --fps), or before a time from 0 to 1."""
    fps: Optional[Positive] = None  # noqa: UP045
    """Frames of the video in a second, so that --when tells and takes seconds."""
    moments: Count = 20
    """How many moments --over-time looks at, evenly spaced."""
    data: Optional[Path] = None  # noqa: UP045
    """Folder of its scene, if that is no longer where the config.yml says."""

    def main(self) -> dict:
        """Runs the command."""
        if self.over_time and (self.time is not None or self.frame is not None or self.camera is not None):
            raise EvaluationError("--over-time looks at all times: leave --time, --frame and --camera out.")
        if self.over_time and self.threshold is not None:
            raise EvaluationError("--over-time says at each moment how sure it is: leave --threshold out.")
        if self.when:
            if self.before is not None and self.fps is None and self.before > 1:
                raise EvaluationError("--before without --fps is a time from 0 to 1: give --fps to say it in seconds.")
            return self._when()
        if self.before is not None or self.fps is not None:
            raise EvaluationError("--before and --fps belong to --when: give it, or leave them out.")
        if self.time is not None and self.frame is not None:
            raise EvaluationError(
                "--time and --frame both name a moment: leave one of them out (--fixed names a viewpoint at a --time)."
            )
        if self.camera is not None and self.fixed is not None:
            raise EvaluationError("--camera and --fixed both name a viewpoint: leave one of them out.")
        if not self.over_time and all(each is None for each in (self.time, self.frame, self.camera)):
            raise EvaluationError(
                "No moment is named, which --fixed does not either: give --time (0 to 1) or --frame (an id), or "
                "--over-time or --when for all of them."
            )
        if not self.text:
            raise EvaluationError("--text names nothing: say what to look for.")
        asked = list(dict.fromkeys(asked_kind(typed, self.features) for typed in self.text))
        check_output_folder(self.output)
        with contextlib.redirect_stdout(sys.stderr):  # nerfstudio says on standard output what it loads
            trained = open_scene(self.load_config, self.data, (self.frame, self.fixed))
            content = self._follow(trained, asked) if self.over_time else self._ask(trained, asked)
        sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")
        return content

    def _ask(self, trained: TrainedScene, asked: Sequence[tuple[str, str]]) -> dict:
        """The answers in one view."""
        from divff_nerfstudio.evaluation.answers import judged
        from divff_nerfstudio.evaluation.figures import save_picture
        from divff_nerfstudio.evaluation.tiles import as_picture
        from divff_nerfstudio.evaluation.viewpoints import read_camera
        from divff_nerfstudio.viewer.camera_reach import require_in_reach

        camera = None
        if self.camera is not None:
            camera = read_camera(self.camera, trained.cameras[:1])
            require_in_reach(self.camera, camera.camera_to_worlds[:, :3, 3].numpy(), trained.scene)
        elif self.fixed is not None:
            camera = trained.camera_at(trained.scene.index_of(self.fixed), 0.0)
        view = trained.view(frame=self.frame, time=self.time, camera=camera, hide=self.hide)
        answers = []
        for kind, phrase in asked:
            answer = view.ask(phrase, kind, self.threshold)
            if self.threshold is None:
                answer = judged(answer, view, trained.calibration(kind))
            base = self.output / file_name(phrase, kind)
            answers.append(answer.summary() | {"files": save_answer(base, answer)})
        assert view.camera.times is not None
        rgb = view.pictures["rgb"].numpy()
        save_picture(self.output / "view.png", as_picture(rgb, (rgb.shape[0], rgb.shape[1])))
        return {
            "scene": trained.scene.name,
            "time": float(view.camera.times.reshape(-1)[0]),
            "camera_to_world": view.camera.camera_to_worlds.reshape(3, 4).tolist(),
            "hidden": list(self.hide),
            "answers": answers,
        }

    def _when(self) -> dict:
        """Where the things are at all times, and when they were moved."""
        if self.over_time or any(each is not None for each in (self.time, self.frame, self.camera, self.fixed)):
            raise EvaluationError(
                "--when looks at all frames: leave --over-time, --time, --frame, --camera and --fixed out."
            )
        if self.threshold is not None or self.hide:
            raise EvaluationError("--when takes no --threshold and hides no layer: leave --threshold and --hide out.")
        asked = list(dict.fromkeys(asked_kind(typed, self.features) for typed in self.text))
        if any(kind != THINGS for kind, _ in asked):
            raise EvaluationError(f"--when tells of things, which are found by {THINGS} features: ask these.")
        phrases = [phrase for _, phrase in asked]
        content = answers_when(self.load_config, self.data, phrases, self.output, self.fps, self.before)
        sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")
        return content

    def _follow(self, trained: TrainedScene, asked: Sequence[tuple[str, str]]) -> dict:
        """Where the things are at all times."""
        from divff_nerfstudio.evaluation.tables import write_csv
        from divff_nerfstudio.evaluation.tracks import follow, save_plot
        from divff_nerfstudio.evaluation.viewpoints import fixed_viewpoint

        viewpoint = fixed_viewpoint(trained.scene, self.fixed)
        frames = evenly_spaced(len(trained.scene), self.moments).tolist()
        shown = track(frames, "Following ...", console=Console(stderr=True), transient=True)
        tracks = follow(trained, asked, shown, viewpoint, self.hide or ("actor",))
        answers = []
        for followed in tracks:
            name = file_name(followed.phrase, followed.kind)
            files = {
                "csv": str(write_csv(self.output / f"{name}_over_time.csv", followed.rows())),
                "plot": str(save_plot(self.output / f"{name}_over_time.png", followed)),
            }
            calibration = trained.calibration(followed.kind)
            verdict = None if calibration is None else calibration.verdicts([followed.phrase])[0].in_scene
            answers.append(followed.summary() | {"in_scene": verdict, "files": files})
        return {"scene": trained.scene.name, "fixed": int(trained.scene.frame_ids[viewpoint]), "over_time": answers}


def save_answer(base: Path, answer: Answer) -> dict[str, str]:
    """Writes an answer's relevancy (NPY and PNG), mask and overlay beside each other.

    Args:
        base: Folder and beginning of the files' names.
        answer: The answer.

    Returns:
        The files' paths by what they hold.
    """
    from divff_nerfstudio.evaluation.figures import save_picture
    from divff_nerfstudio.evaluation.tiles import as_picture

    size = answer.relevancy.shape[0], answer.relevancy.shape[1]
    pictures = {
        "relevancy": answer.relevancy[..., None],
        "mask": answer.mask[..., None].astype(np.float32),
        "overlay": answer.overlay,
    }
    files = {
        name: str(save_picture(base.with_name(f"{base.name}_{name}.png"), as_picture(image, size, smooth=False)))
        for name, image in pictures.items()
    }
    array = base.with_name(f"{base.name}_relevancy.npy")
    with atomic_path(array) as temporary:
        np.save(temporary, answer.relevancy)
    return {"array": str(array), **files}


def file_name(phrase: str, kind: str) -> str:
    """A phrase and its features as the beginning of a file's name; phrases that become alike get a checksum."""
    plain = "_".join("".join(c if c.isalnum() else " " for c in phrase.lower()).split())
    plain = plain[:60].encode()[:120].decode(errors="ignore")  # names of files have at most 255 bytes
    exact = plain.replace("_", " ") == phrase
    checksum = "" if exact else f"_{zlib.crc32(phrase.encode()):08x}"
    return f"{plain or 'query'}{checksum}_{kind}"
