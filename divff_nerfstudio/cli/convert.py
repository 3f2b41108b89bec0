"""``divff convert``: one subcommand for each kind of source."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import numpy as np
import tyro
from PIL import Image
from pydantic import Field

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.cli.video_frames import VideoFramesOfScene
from divff_nerfstudio.convert.colmap import find_model, posed_by, read_colmap, read_model
from divff_nerfstudio.convert.epic_fields import read_epic_fields
from divff_nerfstudio.convert.hands import open_hands
from divff_nerfstudio.convert.keyframes import choose_from_video
from divff_nerfstudio.convert.layout import SceneOptions, is_written, write_scene
from divff_nerfstudio.convert.names import ConvertError, Order
from divff_nerfstudio.convert.nerfstudio import read_nerfstudio
from divff_nerfstudio.convert.pictures import (
    FolderFrames,
    FrameSource,
    VideoFrames,
    open_frames,
    require_from_one,
)
from divff_nerfstudio.convert.posed import PosedFrames
from divff_nerfstudio.convert.staging import fingerprint, staged
from divff_nerfstudio.convert.structure import Engine, Matcher, StructureFromMotion
from divff_nerfstudio.data.pose_fit import require_fitting
from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.data.video_files import video_name

_FEWEST = 10
"""Frames of a video that a reconstruction needs at least."""


def _say(text: str) -> None:
    from nerfstudio.utils.rich_utils import CONSOLE

    CONSOLE.print(text, markup=False)


def _settings(kind: str, options: SceneOptions, *paths: Path, **more: Any) -> dict[str, Any]:
    """All that a conversion's result depends on."""
    chosen = asdict(options)
    for name in ("overwrite", "check_poses"):
        chosen.pop(name)
    return {"kind": kind, **chosen, "sources": [fingerprint(path) for path in paths], **more}


def _convert(
    posed: PosedFrames,
    source: FrameSource,
    output: Path,
    options: SceneOptions,
    settings: dict[str, Any],
    sources: Iterable[Path],
) -> None:
    """Makes a scene folder of a reconstruction."""
    for note in posed.notes:
        _say(note)
    posed = posed.selected(options.first, options.last, options.every)
    if isinstance(source, FolderFrames):  # of a folder, its own entry says nothing of the files in it
        told = [fingerprint(source.files[number]) for number in source.numbers]
        settings = {**settings, "pictures": hashlib.sha256(json.dumps(told).encode()).hexdigest()}
    if isinstance(source, VideoFrames):
        source = source.shaped_as({(camera.width, camera.height) for camera in posed.cameras})
    with staged(output, settings, options.overwrite, sources) as folder:
        _write(folder, posed, source, options)
    _report(output)


def _write(folder: Path, posed: PosedFrames, source: FrameSource, options: SceneOptions) -> None:
    """Writes a scene and opens it, so that a fault is found before it takes its place, and not in training."""
    notes: list[str | None] = [*write_scene(folder, posed, source, options)]
    scene = load_scene(folder)
    if options.check_poses:
        notes.append(require_fitting(scene, posed.path, "--no-check-poses"))
    for note in filter(None, notes):
        _say(note)


def _report(output: Path) -> None:
    scene = load_scene(output, check_frames=False)
    held = ", ".join(f"{len(indices)} {split}" for split, indices in scene.splits.items())
    _say(
        f"{output}: {len(scene)} frames of {scene.width}x{scene.height} ({held}), "
        f"{len(scene.video_numbers_available)} video frames. Next: divff extract --data {output}"
    )


@dataclass
class ColmapToScene:
    """A COLMAP model and the images that it was made of."""

    model: Annotated[Path, tyro.conf.Positional]
    """Folder of cameras, images and points3D (.bin or .txt), or of sparse/0 with them; of several models the one with
    most images is taken."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder of the scene; it must not exist, or be empty."""
    images: Path | None = None
    """Folder of the images, a tar or zip archive of them, or the video; None: MODEL/images."""
    order: Order = "number"
    """Frames are numbered by the digits at the end of their names, or by the order of the names."""
    scene: Annotated[SceneOptions, tyro.conf.arg(name="")] = field(default_factory=SceneOptions)
    """What the scene looks like."""

    def main(self) -> None:
        """Converts it.

        Raises:
            DivffError: Something is wrong with the model, the images or an option.
        """
        self.scene.check()
        model, chosen = find_model(self.model)
        if chosen is not None:
            _say(chosen)
        content = read_model(model)
        images = self.model / "images" if self.images is None else self.images
        if self.images is None and not images.is_dir():
            raise ConvertError(f"{images} is missing: say where the images are, with --images.")
        source = open_frames(images, self.order, content.images.names)
        posed = posed_by(content, source, self.order)
        files = [file for file in sorted(model.iterdir()) if file.is_file()]  # they may be refined where they are
        settings = _settings("colmap", self.scene, *files, images, order=self.order)
        _convert(posed, source, self.output, self.scene, settings, (model, images))


@dataclass
class NerfstudioToScene:
    """A nerfstudio data set: transforms.json and its images."""

    data: Annotated[Path, tyro.conf.Positional]
    """The file, or the folder that holds it."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder of the scene; it must not exist, or be empty."""
    order: Literal["number", "name", "listed"] = "number"
    """The order of the video: the digits at the end of the names, the names, or the file's own order."""
    points: Path | None = None
    """PLY file of points of the room, for near and far; None: the one that transforms.json names."""
    scene: Annotated[SceneOptions, tyro.conf.arg(name="")] = field(default_factory=SceneOptions)
    """What the scene looks like."""

    def main(self) -> None:
        """Converts it.

        Raises:
            DivffError: Something is wrong with the file, the images or an option.
        """
        self.scene.check()
        posed, source = read_nerfstudio(self.data, self.order, self.points, bounded=self.scene.near is not None)
        settings = _settings("nerfstudio", self.scene, posed.path, order=self.order, points=str(self.points))
        pictures = source.files.values() if isinstance(source, FolderFrames) else ()
        sources = (posed.path, *([] if self.points is None else [self.points]), *pictures)
        _convert(posed, source, self.output, self.scene, settings, sources)


@dataclass
class EpicFieldsToScene:
    """An EPIC Fields reconstruction and the frames of its video."""

    reconstruction: Annotated[Path, tyro.conf.Positional]
    """The JSON file, as P28_101.json."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder of the scene; it must not exist, or be empty."""
    frames: Path
    """Folder, tar or zip archive of EPIC-KITCHENS' RGB frames, or the video."""
    scene: Annotated[SceneOptions, tyro.conf.arg(name="")] = field(default_factory=SceneOptions)
    """What the scene looks like."""

    def main(self) -> None:
        """Converts it.

        Raises:
            DivffError: Something is wrong with the file, the frames or an option.
        """
        self.scene.check()
        posed, names = read_epic_fields(self.reconstruction)
        source = open_frames(self.frames, named=names)
        if isinstance(source, VideoFrames):
            require_from_one(posed.numbers.tolist(), self.reconstruction, source)
        settings = _settings("epic-fields", self.scene, self.reconstruction, self.frames)
        _convert(posed, source, self.output, self.scene, settings, (self.reconstruction, self.frames))


@dataclass
class VideoToScene:
    """A video of one's own: COLMAP finds where the camera was."""

    video: Annotated[Path, tyro.conf.Positional]
    """The video, as MP4."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder of the scene; it must not exist, or be empty."""
    num_frames: Annotated[int, Field(ge=_FEWEST, le=100_000)] = 300
    """Frames to reconstruct, at most: the sharpest of as many stretches of equal motion."""
    camera_model: Literal[
        "SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE"
    ] = "OPENCV"
    """What COLMAP takes the lens for; OPENCV_FISHEYE beyond about 100 degrees."""
    hands: Path | None = None
    """Masks of the hands, where no features are looked for: a folder of pictures by frame number, not black where a
    hand is, or a hand_obj_detections.json."""
    engine: Engine = "auto"
    """The program colmap, or the library pycolmap; auto: the program where it is installed."""
    matcher: Matcher = "auto"
    """Match all pairs of frames, or neighbours; auto: all pairs up to 250 frames."""
    scene: Annotated[SceneOptions, tyro.conf.arg(name="")] = field(default_factory=SceneOptions)
    """What the scene looks like; --first and --last are numbers of the video's frames, from 1."""

    def main(self) -> None:
        """Reconstructs and converts it; what was interrupted goes on with the step it was in.

        Raises:
            DivffError: Something is wrong with the video, the masks or an option, or nothing can be reconstructed.
        """
        self.scene.check()
        mine = {name: getattr(self, name) for name in ("num_frames", "camera_model", "engine", "matcher")}
        paths = [self.video] if self.hands is None else [self.video, self.hands]
        video = VideoFrames(self.video)
        settings = _settings("video", self.scene, *paths, **mine)
        with staged(self.output, settings, self.scene.overwrite, paths) as folder:
            work = folder / "reconstruction"
            work.mkdir(exist_ok=True)
            masks = self._extract(video, work)
            steps = StructureFromMotion(work, work / "images", masks, self.camera_model, self.engine, self.matcher)
            model = steps.run(_say)
            images = FolderFrames.of_folder(work / "images")
            found, chosen = read_colmap(model, images, "number"), self.scene
            posed = found.selected(chosen.first, chosen.last, chosen.every)
            _say(f"{len(posed.numbers)} of {len(images.numbers)} frames have a pose.")
            _write(folder, posed, video, self.scene)
            shutil.rmtree(work)
        _report(self.output)

    def _extract(self, video: VideoFrames, work: Path) -> Path | None:
        """Writes the chosen frames and their masks; returns the folder of masks, if there are any."""
        from rich.progress import track

        images, masks = work / "images", work / "masks"
        chosen_path = work / "chosen.txt"
        if not chosen_path.exists():
            chosen = self._chosen(video)
            with atomic_path(chosen_path) as temporary:
                np.savetxt(temporary, chosen, fmt="%d")
        chosen = np.loadtxt(chosen_path, np.int64, ndmin=1)
        images.mkdir(exist_ok=True)
        hands = None if self.hands is None else open_hands(self.hands, VideoFrames(self.video, square=False).size_of(1))
        todo = [n for n in chosen.tolist() if not is_written(images / video_name(n))]
        for number, picture in track(video.read(todo), total=len(todo), description="Writing sharp frames"):
            if hands is not None:
                masks.mkdir(exist_ok=True)
                hidden = hands(number, picture.shape[1], picture.shape[0])
                with atomic_path(masks / f"{video_name(number)}.png", sync=False) as temporary:
                    Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)).save(temporary)
            with atomic_path(images / video_name(number), sync=False) as temporary:
                Image.fromarray(picture).save(temporary, quality=95)
        return None if hands is None else masks

    def _chosen(self, video: VideoFrames) -> np.ndarray:
        first = self.scene.first or 1
        stretch = _Stretch(video, first, self.scene.last)
        chosen = choose_from_video(stretch, self.video, self.num_frames, _FEWEST) + first - 1
        if len(chosen) < _FEWEST:
            raise ConvertError(f"{self.video} has {len(chosen)} frames where {_FEWEST} are needed: give a longer one.")
        return chosen


@dataclass(frozen=True)
class _Stretch:
    """A part of a video."""

    video: VideoFrames
    first: int
    last: int | None

    def decode(self) -> Iterator[tuple[int, Any]]:
        for number, frame in self.video.decode():
            if self.last is not None and number > self.last:
                return
            if number >= self.first:
                yield number, frame


_Source = Union[  # noqa: UP007  (tyro reads annotations of the members)
    Annotated[VideoToScene, tyro.conf.subcommand("video")],
    Annotated[ColmapToScene, tyro.conf.subcommand("colmap")],
    Annotated[NerfstudioToScene, tyro.conf.subcommand("nerfstudio")],
    Annotated[EpicFieldsToScene, tyro.conf.subcommand("epic-fields")],
    Annotated[VideoFramesOfScene, tyro.conf.subcommand("video-frames")],
]


@dataclass
class ConvertConfig:
    """Turn a video, a COLMAP model, a nerfstudio data set or an EPIC Fields reconstruction into a scene folder."""

    source: Annotated[_Source, tyro.conf.arg(name="")]
    """What to convert."""

    def main(self) -> None:
        """Converts it; see the `main` of the source."""
        self.source.main()
