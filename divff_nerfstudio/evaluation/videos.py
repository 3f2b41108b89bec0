"""Videos of a scene: what the camera saw and how it is explained, and the same times from another viewpoint."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.evaluation.options import EvaluationError, MovingLayer
from divff_nerfstudio.evaluation.tiles import Picture, blank, caption, cell_size, column_of, fitted, row_of
from divff_nerfstudio.evaluation.trained_scene import AskedView, TrainedScene
from divff_nerfstudio.evaluation.viewpoints import at_size
from divff_nerfstudio.models.view import FEATURES
from divff_nerfstudio.query import OVERLAY_OFFSET, overlay
from divff_nerfstudio.viewer.camera_paths import CameraPath, Crop

FPS = 10.0
"""Pictures per second where nothing else is said."""
_LABEL_HEIGHT = 28
_MAX_SIDE = 16384
"""Pixels of a side that libx264 takes at most."""
_TARGET = "target"


@dataclass(frozen=True)
class Layout:
    """What stands where in a video's pictures."""

    rows: tuple[Literal["own", "other"], ...]
    """From top to bottom: the camera wearer's own view, the same time from another viewpoint."""
    columns: tuple[tuple[str, str], ...]
    """From left to right: the words below, and the name of the output, or "target" for the frame itself."""
    relevancies: bool = True
    """Whether a column for each query follows."""


_LAYERS = (("static", "rgb_static"), ("dynamic", "rgb_dynamic"), ("actor", "rgb_actor"))
_MASKS = (("dynamic mask", "mask_dynamic"), ("actor mask", "mask_actor"))
_SEEN = ((_TARGET, _TARGET), ("prediction", "rgb"))
LAYOUTS: Mapping[str, Layout] = {
    "published": Layout(("own", "other"), (*_SEEN, *_LAYERS)),
    "own": Layout(("own",), (*_SEEN, *_LAYERS)),
    "other": Layout(("other",), (("prediction", "rgb"), *_LAYERS)),
    "masks": Layout(("own", "other"), (*_SEEN, *_LAYERS, *_MASKS)),
    "relevancy": Layout(("own", "other"), (("prediction", "rgb"),)),
    "prediction": Layout(("other",), (("prediction", "rgb"),), relevancies=False),
}
"""By name; "published" is that of DIV-FF's videos. A new one is a line here, and its name in `cli/video.py`."""


@dataclass(frozen=True)
class Shot:
    """What one picture of a video shows."""

    frame: int
    """Index of the frame whose own view is shown."""
    other: Cameras
    """The other viewpoint's camera, with its time."""
    note: tuple[str, ...]
    """What that viewpoint is, in lines."""
    crop: Crop | None = None
    """The part of the scene that it sees; None: all."""


@contextmanager
def video_writer(path: Path, height: int, width: int, fps: float) -> Iterator[Callable[[Picture], None]]:
    """Opens an H.264 video (yuv420p, index in front) that takes its place only when it is complete.

    The ffmpeg program of the package imageio-ffmpeg writes it, a picture at a time.

    Args:
        path: The .mp4 file.
        height: Height of the pictures, even.
        width: Width of the pictures, even.
        fps: Pictures per second.

    Yields:
        A function that takes the next picture, uint8 (height, width, 3).

    Raises:
        EvaluationError: If ffmpeg fails, or leaves another number of pictures than it was given.
        DiskError: If the disk is full.
    """
    if height % 2 or width % 2:
        raise ValueError(f"H.264 with yuv420p wants an even size, not {width}x{height}")
    try:
        with atomic_path(path) as temporary:
            yield from _encoded(temporary, height, width, fps)
    except _EncoderError as error:
        raise EvaluationError(f"{path} could not be written ({error}): mend that, or take another --output.") from None


class _EncoderError(OSError):
    """Writing a video has failed; `atomic_path` finds out whether a full disk was the reason."""


def _encoded(path: Path, height: int, width: int, fps: float) -> Iterator[Callable[[Picture], None]]:
    """As `video_writer`, at a temporary path."""
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        program = get_ffmpeg_exe()
    except RuntimeError as error:
        raise _EncoderError(f"there is no ffmpeg: {error}") from None
    count = 0
    with TemporaryFile() as said:
        command = [
            *(program, "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"),
            *("-r", f"{fps:.6f}", "-i", "-", "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20"),
            *("-movflags", "+faststart", str(path)),
        ]
        # In a group of its own, Ctrl-C does not reach it: this process ends it.
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said, start_new_session=True) as ffmpeg:
            assert ffmpeg.stdin is not None

            def send(picture: Picture) -> None:
                nonlocal count
                with suppress(BrokenPipeError):  # it has ended, and its status and words tell why
                    ffmpeg.stdin.write(np.ascontiguousarray(picture).data)  # pyright: ignore[reportOptionalMemberAccess]
                if ffmpeg.poll() is not None:
                    raise _failed(ffmpeg.returncode, said)
                count += 1

            try:
                yield send
            except BaseException:
                ffmpeg.kill()
                raise
            with suppress(BrokenPipeError):
                ffmpeg.stdin.close()
            if ffmpeg.wait():
                raise _failed(ffmpeg.returncode, said)
    if (written := _pictures_in(path)) != count:
        raise _EncoderError(f"{written} of {count} pictures are in the video")


def _failed(status: int, said: IO[bytes]) -> _EncoderError:
    """That ffmpeg has failed, and its last words."""
    said.seek(0)
    lines = said.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return _EncoderError(f"ffmpeg ended with status {status}: {last}")


def _pictures_in(path: Path) -> int:
    """Number of pictures that can be read from a video."""
    import av

    try:
        with av.open(str(path)) as video:
            return sum(packet.size > 0 for packet in video.demux(video=0))
    except (av.FFmpegError, IndexError):
        return 0


def write_video(path: Path, pictures: Iterable[Picture], fps: float = FPS) -> int:
    """Writes pictures of one size as a video, in the memory of one of them.

    Args:
        path: The .mp4 file.
        pictures: uint8; an odd height or width is filled up with a line of the last pixels.
        fps: Pictures per second.

    Returns:
        How many there were.

    Raises:
        EvaluationError: If there is none, or the video cannot be written.
    """
    pictures = iter(pictures)
    first = next(pictures, None)
    if first is None:
        raise EvaluationError(f"{path} would have no picture: choose at least one frame.")
    if max(first.shape[:2]) > _MAX_SIDE:
        raise EvaluationError(
            f"{path} would have pictures of {first.shape[1]}x{first.shape[0]}, and H.264 takes {_MAX_SIDE} pixels at "
            "most: lower --cell-height, ask less at once, or choose a --layout of fewer columns."
        )
    odd = ((0, first.shape[0] % 2), (0, first.shape[1] % 2), (0, 0))
    count = 1
    with video_writer(path, first.shape[0] + odd[0][1], first.shape[1] + odd[1][1], fps) as send:
        send(np.pad(first, odd, mode="edge"))
        for picture in pictures:
            send(np.pad(picture, odd, mode="edge"))
            count += 1
    return count


def fixed_moments(trained: TrainedScene, frames: Sequence[int], viewpoint: int) -> list[Shot]:
    """Frames, each beside the same time from one fixed viewpoint.

    Args:
        trained: The scene.
        frames: Indices of the frames.
        viewpoint: Index of the frame whose camera is the other one.
    """
    note = ("fixed viewpoint", f"of frame {trained.scene.frame_ids[viewpoint]}", "(no target)")
    return [Shot(i, trained.camera_at(viewpoint, float(trained.times[i])), note) for i in frames]


def path_moments(trained: TrainedScene, path: CameraPath, steps: Sequence[int], size: tuple[int, int]) -> list[Shot]:
    """Steps of a camera path, each beside the frame next in time.

    Args:
        trained: The scene.
        path: Its cameras; where they have no times, they are spread evenly over the video.
        steps: Which of the cameras.
        size: Height and width of the cell that they are shown in: they are rendered as large as they are seen.
    """
    cameras = path.cameras
    spread = np.linspace(trained.times[0], trained.times[-1], len(cameras))
    times = spread if cameras.times is None else cameras.times[:, 0].numpy()
    moments = []
    for step in steps:
        camera = at_size(cameras[step : step + 1], size)
        camera.times = torch.tensor([[float(times[step])]])
        note = ("camera path", f"{step + 1} of {len(cameras)}", "(no target)")
        moments.append(Shot(trained.frame_at(float(times[step])), camera, note, path.crop))
    return moments


def video_pictures(
    trained: TrainedScene,
    moments: Iterable[Shot],
    layout: Layout,
    queries: Sequence[tuple[str, str]] = (),
    hide: Sequence[MovingLayer] = (),
    size: tuple[int, int] | None = None,
) -> Iterator[Picture]:
    """Pictures of a video, one for each moment, rendered when they are asked for. The columns' labels stand below.

    Args:
        trained: Renders the views.
        moments: What to show.
        layout: What stands where.
        queries: Kind of features and phrase of each relevancy that is shown.
        hide: Layers to leave out.
        size: Height and width of a cell in pixels; None: as the scene's frames, 180 high.

    Raises:
        QueryError: If a query cannot be answered.
    """
    scene = trained.scene
    size = size or cell_size(scene.height, scene.width)
    queries = queries if layout.relevancies else ()
    words = [text for text, _ in layout.columns] + [f"relevancy: {phrase}" for _, phrase in queries]
    outputs = {name for _, name in layout.columns if name != _TARGET} | ({"rgb", FEATURES} if queries else set())
    labels = row_of([caption(text, size[1], _LABEL_HEIGHT) for text in words])
    for moment in moments:
        rows = []
        for row in layout.rows:
            own = row == "own"
            camera = trained.cameras[moment.frame : moment.frame + 1] if own else moment.other
            target = fitted(scene.frame(moment.frame) / 255.0, size) if own else blank(size, moment.note)
            view = trained.render(camera, hide, None if own else moment.crop, outputs)
            rows.append(_row(view, target, layout, queries, size))
        yield column_of([*rows, labels])


def _row(
    view: AskedView, target: Picture, layout: Layout, queries: Sequence[tuple[str, str]], size: tuple[int, int]
) -> Picture:
    """One view in the columns of a layout."""
    cells = []
    for _, name in layout.columns:
        if name == _TARGET:
            cells.append(target)
        elif name in view.pictures:
            cells.append(fitted(view.pictures[name].numpy(), size))
        else:
            cells.append(blank(size, ("not available",)))
    for kind, phrase in queries:
        scores = torch.from_numpy(view.relevancies(kind, [phrase]))
        cells.append(fitted(overlay(view.pictures["rgb"], scores, OVERLAY_OFFSET[kind]).numpy(), size))
    return row_of(cells)
