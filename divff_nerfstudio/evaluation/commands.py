"""The commands that look at a trained scene: `divff evaluate`, `query`, `video`, `export` and `view`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Optional, Union

import numpy as np
from nerfstudio.utils.rich_utils import CONSOLE
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.evaluation.answers import Answer, asked_kind
from divff_nerfstudio.evaluation.baseline_models import BaselineModels
from divff_nerfstudio.evaluation.figures import save_picture
from divff_nerfstudio.evaluation.metrics import lpips_weights
from divff_nerfstudio.evaluation.pointcloud import CloudOptions, write_cloud
from divff_nerfstudio.evaluation.report import Gallery, Report, save_report, save_scores
from divff_nerfstudio.evaluation.results import Evaluation
from divff_nerfstudio.evaluation.run import TaskGroup, Wanted, evaluate
from divff_nerfstudio.evaluation.runs import load_run, open_run, open_scene, run_facts, training_seconds
from divff_nerfstudio.evaluation.scores import FRAME_SCORES, SCENE_SCORES
from divff_nerfstudio.evaluation.tables import COLUMNS, SCORES_FILE, average_table, read_runs, save_csv, write_csv
from divff_nerfstudio.evaluation.tiles import as_picture, cell_size
from divff_nerfstudio.evaluation.tracks import follow, save_plot
from divff_nerfstudio.evaluation.trained_scene import EvaluationError, MovingLayer, TrainedScene
from divff_nerfstudio.evaluation.videos import FPS, LAYOUTS, fixed_moments, path_moments, video_pictures, write_video
from divff_nerfstudio.evaluation.viewpoints import chosen_frames, fixed_viewpoint, read_camera
from divff_nerfstudio.option_ranges import Port
from divff_nerfstudio.outputs import check_output_file, check_output_folder
from divff_nerfstudio.run_folder import RunError
from divff_nerfstudio.schema import Amount, Count, Share, Words
from divff_nerfstudio.viewer.camera_paths import PicturesPerSecond, read_camera_path
from divff_nerfstudio.viewer.panel_state import load_panel_state, panel_state_path

Features = Literal["image", "video"]
"""Which features answer: what something is, or what is done with it."""


@dataclass
class EvaluateConfig:
    """Scores a trained scene on its held-out frames: a page, figures, and all numbers as JSON and CSV. With --average,
    makes the table over scenes that have been evaluated."""

    load_config: Optional[Path] = None  # noqa: UP045
    """The run's config.yml."""
    data: Optional[Path] = None  # noqa: UP045
    """Folder of its scene, if that is no longer where the config.yml says."""
    tasks: Annotated[tuple[TaskGroup, ...], Field(min_length=1)] = ("masks", "objects", "affordances", "views")
    """What to evaluate: pictures and masks, annotated objects, annotated actions, and other times and viewpoints."""
    frames: Optional[Count] = None  # noqa: UP045
    """How many held-out frames, evenly spaced; by default all."""
    queries: tuple[Words, ...] = ()
    """Only these classes and actions; phrases that are not annotated are shown in the figures, "video: cut the bread"
    by video features. By default all that are annotated."""
    baselines: tuple[str, ...] = ("nearest", "mean", "extracted")
    """Methods to score beside the field: nearest (copy of the nearest training frame), mean (of all training frames),
    extracted (the frame's own 2D features), lerf (CLIP of crops of the frame), owl and owl-real (boxes by OWL, masks by
    SAM, in the rendering or in the frame), ooal (affordances), or your own, module:Class."""
    models: BaselineModels = field(default_factory=BaselineModels)
    """Options of baselines with models of their own."""
    name: Optional[Words] = None  # noqa: UP045
    """What the run is called in tables, where several are of one method; by default its method."""
    moments: Count = 8
    """How many moments the tasks of other times and viewpoints look at."""
    download_lpips: bool = False
    """Fetch the weights of LPIPS (244 MB) if they are not on this machine; without them it is left out."""
    output: Optional[Path] = None  # noqa: UP045
    """Folder for scores.json, the CSV files, report.html and frames/; by default "evaluation" beside the config.yml.
    With --average, folder for average.md and average.tex; by default this one."""
    average: tuple[Path, ...] = ()
    """Evaluated runs (their folders, or scores.json) to put into one table with means over the scenes."""
    columns: Annotated[tuple[Words, ...], Field(min_length=1)] = COLUMNS
    """Scores in that table, by their names in scores.json."""

    def main(self) -> Evaluation | None:
        """Runs the command."""
        if self.average:
            if self.load_config is not None:
                raise EvaluationError("--average makes a table of evaluated runs: leave --load-config out.")
            return self._average()
        if self.load_config is None:
            raise EvaluationError("Give a run: --load-config RUN/config.yml, or --average RUN... for the table.")
        run = self.load_config.resolve().parent
        folder = check_output_folder(self.output or run / "evaluation")
        if self.download_lpips:
            _fetch_lpips()
        pipeline, step = open_run(self.load_config, self.data)
        gallery, start = Gallery(folder / "frames"), time.perf_counter()
        wanted = Wanted(self.tasks, self.frames, self.queries, self.baselines, self.moments, self.models)
        evaluation = evaluate(
            pipeline.model, pipeline.datamanager, pipeline.query, gallery.add, wanted, gallery.add_picture
        )
        facts = run_facts(pipeline, step)
        facts["Method"] = self.name or facts["Method"]
        if (trained := training_seconds(run)) is not None:
            facts["Training"] = f"{trained:.0f} s"
        facts["Evaluation"] = f"{time.perf_counter() - start:.0f} s"
        if "masks" in self.tasks and not lpips_weights().is_file():
            facts["LPIPS"] = f"left out: {lpips_weights()} is not there (--download-lpips fetches it)"
        save_scores(folder / SCORES_FILE, evaluation, facts)
        save_csv(folder, facts["Method"], evaluation)
        introduction = "Scores and pictures of the test frames, which training has never seen."
        save_report(folder / "report.html", Report(facts["Scene"], introduction, evaluation, gallery, facts))
        for key, value in evaluation.totals.items():
            CONSOLE.print(f"{key:>28} {value:8.3f}")
        CONSOLE.print(f"Written: {escape(str(folder / 'report.html'))}; {SCORES_FILE} and CSV files beside it")
        return evaluation

    def _average(self) -> None:
        unknown = [name for name in self.columns if name not in FRAME_SCORES | SCENE_SCORES]
        if unknown:
            raise EvaluationError(f"There is no score {unknown[0]}: use names from {SCORES_FILE}.")
        folder = check_output_folder(self.output or Path())
        table = average_table(read_runs(self.average), self.columns)
        for name, text in (("average.md", table.markdown()), ("average.tex", table.latex())):
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        sys.stdout.write(table.markdown())
        CONSOLE.print(f"Written: {escape(str(folder / 'average.md'))} and average.tex")


def _fetch_lpips() -> None:
    try:
        lpips_weights(download=True)
    except (OSError, RuntimeError) as error:
        raise EvaluationError(
            f"The weights of LPIPS cannot be fetched ({error}): put them at {lpips_weights()}, or leave "
            "--download-lpips out."
        ) from None


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
    """Relevancy above which a pixel belongs to the mask; by default 0.7 for image and 0.54 for video features."""
    hide: tuple[MovingLayer, ...] = ()
    """Layers to leave out: actor, dynamic."""
    over_time: bool = False
    """Follow each thing over the whole video: when it moves, and where it is, as a plot and CSV."""
    moments: Count = 20
    """How many moments --over-time looks at, evenly spaced."""
    data: Optional[Path] = None  # noqa: UP045
    """Folder of its scene, if that is no longer where the config.yml says."""

    def main(self) -> dict:
        """Runs the command."""
        if self.over_time and (self.time is not None or self.frame is not None or self.camera is not None):
            raise EvaluationError("--over-time looks at all times: leave --time, --frame and --camera out.")
        if self.time is not None and self.frame is not None:
            raise EvaluationError(
                "--time and --frame both name a moment: leave one of them out (--fixed names a viewpoint at a --time)."
            )
        if self.camera is not None and self.fixed is not None:
            raise EvaluationError("--camera and --fixed both name a viewpoint: leave one of them out.")
        if self.fixed is not None and not self.over_time and self.time is None and self.frame is None:
            raise EvaluationError("--fixed is a viewpoint, not a moment: give --time or --frame as well.")
        if not self.text:
            raise EvaluationError("--text names nothing: say what to look for.")
        asked = list(dict.fromkeys(asked_kind(typed, self.features) for typed in self.text))
        check_output_folder(self.output)
        with contextlib.redirect_stdout(sys.stderr):  # nerfstudio says on standard output what it loads
            trained = open_scene(self.load_config, self.data)
            content = self._follow(trained, asked) if self.over_time else self._ask(trained, asked)
        sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")
        return content

    def _ask(self, trained: TrainedScene, asked: Sequence[tuple[str, str]]) -> dict:
        """The answers in one view."""
        camera = None
        if self.camera is not None:
            camera = read_camera(self.camera, trained.scene)
        elif self.fixed is not None:
            camera = trained.camera_at(trained.scene.index_of(self.fixed), 0.0)
        view = trained.view(frame=self.frame, time=self.time, camera=camera, hide=self.hide)
        answers = []
        for kind, phrase in asked:
            answer = view.ask(phrase, kind, self.threshold)
            base = self.output / file_name(phrase, kind)
            answers.append(answer.summary() | {"files": save_answer(base, answer)})
        assert view.camera.times is not None
        rgb = view.outputs["rgb"].numpy()
        save_picture(self.output / "view.png", as_picture(rgb, (rgb.shape[0], rgb.shape[1])))
        return {
            "scene": trained.scene.name,
            "time": float(view.camera.times.reshape(-1)[0]),
            "camera_to_world": view.camera.camera_to_worlds.reshape(3, 4).tolist(),
            "hidden": list(self.hide),
            "answers": answers,
        }

    def _follow(self, trained: TrainedScene, asked: Sequence[tuple[str, str]]) -> dict:
        """Where the things are at all times."""
        viewpoint = fixed_viewpoint(trained.scene, self.fixed)
        frames = chosen_frames(len(trained.scene), self.moments)
        shown = track(frames, "Following ...", console=Console(stderr=True), transient=True)
        tracks = follow(trained, asked, shown, viewpoint, self.hide or ("actor",))
        answers = []
        for followed in tracks:
            name = file_name(followed.phrase, followed.kind)
            files = {
                "csv": str(write_csv(self.output / f"{name}_over_time.csv", followed.rows())),
                "plot": str(save_plot(self.output / f"{name}_over_time.png", followed)),
            }
            answers.append(followed.summary() | {"files": files})
        return {"scene": trained.scene.name, "fixed": int(trained.scene.frame_ids[viewpoint]), "over_time": answers}


def save_answer(base: Path, answer: Answer) -> dict[str, str]:
    """Writes an answer's relevancy (NPY and PNG), mask and overlay beside each other.

    Args:
        base: Folder and beginning of the files' names.
        answer: The answer.

    Returns:
        The files' paths by what they hold.
    """
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
    plain = "_".join("".join(c if c.isalnum() else " " for c in phrase.lower()).split())[:60]
    exact = plain.replace("_", " ") == phrase
    checksum = "" if exact else f"_{zlib.crc32(phrase.encode()):08x}"
    return f"{plain or 'query'}{checksum}_{kind}"


@dataclass
class VideoConfig:
    """Writes a video of a trained scene: its own trajectory above, the same times from another viewpoint below."""

    load_config: Path
    """The run's config.yml."""
    output: Optional[Path] = None  # noqa: UP045
    """The .mp4 file; by default "video.mp4" beside the config.yml."""
    layout: Literal["published", "own", "other", "masks", "relevancy", "prediction"] = "published"
    """What stands where: published (own trajectory above, other viewpoint below; target, prediction, static, dynamic,
    actor, relevancies), one of its rows (own, other), with the layers' masks (masks), relevancies alone (relevancy), or
    only what the other viewpoint sees (prediction)."""
    queries: tuple[Words, ...] = ()
    """Phrases whose relevancies are shown, a column each; "video: cut the bread" asks the other features than
    --features says. By default those of the run's configuration."""
    features: Features = "image"
    """Which features answer the queries."""
    hide: tuple[MovingLayer, ...] = ()
    """Layers to leave out: actor, dynamic."""
    camera_path: Optional[Path] = None  # noqa: UP045
    """Camera path of nerfstudio's viewer: the other viewpoint. A picture for each of its cameras, at its time. What the
    panel asked and hid when it was saved is asked and hidden, unless --queries or --hide say otherwise."""
    fixed: Optional[Amount] = None  # noqa: UP045
    """Id of the frame whose viewpoint is the other one; by default the published one of EPIC-Diff's scenes, else the
    most central."""
    frames: Union[Literal["all"], Count] = "all"  # noqa: UP007
    """How many pictures, evenly spaced over the scene or the camera path."""
    fps: Optional[PicturesPerSecond] = None  # noqa: UP045
    """Pictures per second; by default as many as make the film as long as the camera path says, else 10."""
    cell_height: Annotated[int, Field(ge=16, le=2160)] = 180
    """Height of each picture in the video, in pixels. What a camera path sees is rendered at this height."""
    data: Optional[Path] = None  # noqa: UP045
    """Folder of its scene, if that is no longer where the config.yml says."""

    def main(self) -> Path:
        """Runs the command."""
        if self.camera_path is not None and self.fixed is not None:
            raise EvaluationError("--camera-path and --fixed both name the other viewpoint: leave one of them out.")
        file = check_output_file(self.output or self.load_config.resolve().parent / "video.mp4", ".mp4")
        asked = [asked_kind(typed, self.features) for typed in self.queries]
        path = None if self.camera_path is None else read_camera_path(self.camera_path)
        trained, hide, layout = open_scene(self.load_config, self.data), self.hide, LAYOUTS[self.layout]
        wanted, fps = None if self.frames == "all" else int(self.frames), self.fps
        shape = trained.scene.height, trained.scene.width
        if path is not None:
            hide = self._as_in_the_panel(trained)
            steps = chosen_frames(len(path.cameras), wanted)
            fps = fps or path.pictures_per_second(len(steps))
            if layout.rows == ("other",):
                shape = path.height, path.width
            moments = path_moments(trained, path, steps, cell_size(*shape, self.cell_height))
        else:
            viewpoint = fixed_viewpoint(trained.scene, self.fixed)
            moments = fixed_moments(trained, chosen_frames(len(trained.scene), wanted), viewpoint)
        queries = asked or trained.standing_queries
        pictures = video_pictures(trained, moments, layout, queries, hide, cell_size(*shape, self.cell_height))
        shown = track(pictures, "Rendering the video ...", total=len(moments), console=CONSOLE, transient=True)
        count = write_video(file, shown, fps or FPS)
        CONSOLE.print(f"Written: {escape(str(file))} ({count} frames)")
        return file

    def _as_in_the_panel(self, trained: TrainedScene) -> tuple[MovingLayer, ...]:
        """Asks what the panel had asked when the camera path was saved; the layers that it had hidden."""
        assert self.camera_path is not None
        saved = panel_state_path(self.camera_path)
        if not saved.is_file():
            return self.hide
        state = load_panel_state(saved)
        if not self.queries:
            state.ask(trained.query)
        switches: dict[MovingLayer, bool] = {"actor": state.hide_actor, "dynamic": state.hide_dynamic}
        return self.hide or tuple(layer for layer, hidden in switches.items() if hidden)


@dataclass
class ExportConfig:
    """Writes a trained scene at one moment for other programs: a point cloud of several views, or Gaussians, as PLY."""

    load_config: Path
    """The run's config.yml."""
    what: Literal["pointcloud", "gaussians"] = "pointcloud"
    """What to write. "gaussians": each layer of a run of divff-splat, as viewers of Gaussians open it."""
    output: Optional[Path] = None  # noqa: UP045
    """The .ply file, or the folder of the layers' files; by default "pointcloud.ply" or "gaussians" beside the
    config.yml."""
    queries: tuple[Words, ...] = ()
    """Phrases whose relevancy each point gets; "video: cut the bread" asks the other features than --features says."""
    features: Features = "image"
    """Which features answer, and are written."""
    time: Optional[Share] = None  # noqa: UP045
    """The moment, 0 to 1; by default the middle of the video."""
    cloud: CloudOptions = field(default_factory=CloudOptions)
    """Views, sizes, and what is left out."""
    data: Optional[Path] = None  # noqa: UP045
    """Folder of its scene, if that is no longer where the config.yml says."""

    def main(self) -> Path:
        """Runs the command."""
        folder = self.load_config.resolve().parent
        if self.what == "gaussians":
            return self._gaussians(check_output_folder(self.output or folder / "gaussians"))
        queries = [asked_kind(typed, self.features) for typed in self.queries]
        path = check_output_file(self.output or folder / "pointcloud.ply", ".ply")
        trained = open_scene(self.load_config, self.data)
        count = write_cloud(path, trained, self._moment(trained), queries, self.features, self.cloud)
        CONSOLE.print(f"Written: {escape(str(path))} ({count} points)")
        return path

    def _moment(self, trained: TrainedScene) -> float:
        return float(np.median(trained.times)) if self.time is None else self.time

    def _gaussians(self, folder: Path) -> Path:
        """Writes the layers, the actor where it is for the camera of the frame next to the time."""
        from divff_nerfstudio.models.splat.model import SplatModel
        from divff_nerfstudio.models.splat.ply import write_layers

        trained = open_scene(self.load_config, self.data)
        time = self._moment(trained)
        if not isinstance(trained.model, SplatModel):
            raise RunError(f"{self.load_config} is a run without Gaussians: give one of `ns-train divff-splat`.")
        camera = trained.camera_at(trained.frame_at(time), time)
        names = [path.name for path in write_layers(trained.model, folder, camera).values()]
        CONSOLE.print(f"Written: {escape(str(folder))} ({', '.join(names)})")
        return folder


@dataclass
class ViewConfig:
    """Opens nerfstudio's viewer on a trained scene, for this machine alone unless told otherwise."""

    load_config: Path
    """The run's config.yml; refused if it could execute code."""
    host: Words = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets every machine of the network in."""
    port: Optional[Port] = None  # noqa: UP045
    """Port to listen on; by default the first free one from 7007."""
    data: Optional[Path] = None  # noqa: UP045
    """Folder of its scene, if that is no longer where the config.yml says."""

    def main(self) -> None:
        """Runs the viewer until it is interrupted."""
        from nerfstudio.configs.base_config import ViewerConfig
        from nerfstudio.scripts.viewer.run_viewer import _start_viewer

        run = load_run(self.load_config, self.data)
        run.config.vis, rays = "viewer", run.config.viewer.num_rays_per_chunk
        run.config.viewer = ViewerConfig(websocket_host=self.host, websocket_port=self.port, num_rays_per_chunk=rays)
        _start_viewer(run.config, run.pipeline, run.step)
