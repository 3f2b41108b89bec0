"""Videos of a scene: what the camera saw and how it is explained, and the same times from one fixed viewpoint."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track

from divff_nerfstudio.data.scene import Scene
from divff_nerfstudio.evaluation.figures import cell_size
from divff_nerfstudio.evaluation.run import EvaluationError, Renderer
from divff_nerfstudio.evaluation.tiles import Picture, as_picture, blank, caption, column_of, row_of
from divff_nerfstudio.files import atomic_path
from divff_nerfstudio.query import Query

if TYPE_CHECKING:
    from divff_nerfstudio.datamanager import DivFFDataManager

_LAYERS = (("prediction", "rgb"), ("static", "rgb_static"), ("dynamic", "rgb_dynamic"), ("actor", "rgb_actor"))
_LABEL_HEIGHT = 28


@contextmanager
def video_writer(path: Path, height: int, width: int, fps: float) -> Iterator[Generator[None, Picture | None, None]]:
    """Opens an H.264 video (yuv420p, index in front) that takes its place only when it is complete.

    The ffmpeg program of the package imageio-ffmpeg writes it, a picture at a time.

    Args:
        path: The .mp4 file.
        height: Height of the pictures, even.
        width: Width of the pictures, even.
        fps: Pictures per second.

    Yields:
        A generator whose `send` takes uint8 pictures (height, width, 3).
    """
    if height % 2 or width % 2:
        raise ValueError(f"H.264 with yuv420p wants an even size, not {width}x{height}")
    import imageio_ffmpeg

    with atomic_path(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=fps,  # pyright: ignore[reportArgumentType]
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            quality=None,  # pyright: ignore[reportArgumentType]
            output_params=["-crf", "20", "-movflags", "+faststart"],
            ffmpeg_log_level="error",
        )
        writer.send(None)
        try:
            yield writer
        finally:
            writer.close()
        if not temporary.is_file() or temporary.stat().st_size == 0:
            raise EvaluationError(f"{path} could not be written: see ffmpeg's message above.")


def write_video(path: Path, pictures: Iterable[Picture], fps: float = 10.0) -> int:
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
    odd = ((0, first.shape[0] % 2), (0, first.shape[1] % 2), (0, 0))
    count = 1
    with video_writer(path, first.shape[0] + odd[0][1], first.shape[1] + odd[1][1], fps) as writer:
        writer.send(np.ascontiguousarray(np.pad(first, odd, mode="edge")))
        for picture in pictures:
            writer.send(np.ascontiguousarray(np.pad(picture, odd, mode="edge")))
            count += 1
    return count


def scene_cameras(datamanager: DivFFDataManager) -> Cameras:
    """Cameras of all frames of a scene in the order of their indices, whichever split they belong to."""
    scene: Scene = datamanager.train_dataset.metadata["scene"]
    first = datamanager.train_dataset.cameras[:1]
    times = scene.times(datamanager.dataparser.config.time_rows)  # pyright: ignore[reportAttributeAccessIssue]
    return Cameras(
        camera_to_worlds=torch.from_numpy(scene.camera_to_worlds),
        width=scene.width,
        height=scene.height,
        times=torch.from_numpy(times)[:, None],
        **{name: getattr(first, name).expand(len(scene), 1).cpu() for name in ("fx", "fy", "cx", "cy")},
    )


def central_frame(scene: Scene) -> int:
    """Index of the frame whose viewpoint is nearest to all others: the medoid of positions and viewing directions."""
    positions, directions = scene.camera_to_worlds[:, :, 3], -scene.camera_to_worlds[:, :, 2]
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    apart = apart / max(apart.mean(), 1e-9)
    turned = np.arccos(np.clip(directions @ directions.T, -1, 1))
    turned = turned / max(turned.mean(), 1e-9)
    return int((apart + turned).sum(axis=1).argmin())


def chosen_frames(count: int, wanted: int | None) -> list[int]:
    """Evenly spaced indices, first and last among them; None: all."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted({round(float(i)) for i in np.linspace(0, count - 1, max(wanted, 1))})


def two_row_pictures(
    model: Renderer,
    datamanager: DivFFDataManager,
    query: Query,
    frames: Sequence[int],
    fixed: int,
    cell_height: int = 180,
) -> Iterator[Picture]:
    """Pictures of the video that the paper shows, one for each frame.

    Above, the frame and its prediction, the static layer alone, the shares of the dynamic layer and of the actor, and,
    if a query is set, its relevancy. Below, the same from a fixed viewpoint, where there is no target. The columns'
    labels stand below.

    Args:
        model: Renders the views.
        datamanager: Gives the frames and cameras.
        query: The query whose relevancy is shown, if one is set; it is the model's hook already.
        frames: Indices of the frames in the scene.
        fixed: Index of the frame whose viewpoint is the fixed one.
        cell_height: Height of a cell in pixels.
    """
    scene: Scene = datamanager.train_dataset.metadata["scene"]
    cameras = scene_cameras(datamanager)
    size = cell_size(scene.height, scene.width, cell_height)
    device = datamanager.device
    layers = list(_LAYERS)
    if query.active:
        layers.append((f"relevancy: {query.config.text}", "relevancy_overlay"))
    labels = row_of([caption(text, size[1], _LABEL_HEIGHT) for text in ("target", *(name for name, _ in layers))])
    times = cameras.times
    assert times is not None
    for index in frames:
        own = cameras[index : index + 1]
        still = cameras[fixed : fixed + 1]
        still.times = times[index : index + 1]
        note = blank(size, ("fixed viewpoint", f"of frame {scene.frame_ids[fixed]}", "(no target)"))
        rows = []
        for camera, left in ((own, as_picture(scene.frame(index) / 255.0, size)), (still, note)):
            with torch.no_grad():
                outputs = model.get_outputs_for_camera(camera.to(device))
            pictures = [
                as_picture(outputs[key].cpu().float().numpy(), size)
                if key in outputs
                else blank(size, ("not available",))
                for _, key in layers
            ]
            rows.append(row_of([left, *pictures]))
        yield column_of([*rows, labels])


def write_two_row_video(
    path: Path,
    model: Renderer,
    datamanager: DivFFDataManager,
    query: Query,
    frames: int | None = None,
    fixed_frame: int | None = None,
    fps: float = 10.0,
    cell_height: int = 180,
) -> int:
    """Renders and writes the two-row video of `two_row_pictures`.

    Args:
        path: The .mp4 file.
        model: Renders the views.
        datamanager: Gives the frames and cameras.
        query: The query whose relevancy is shown, if one is set.
        frames: How many frames of the scene, evenly spaced; None: all.
        fixed_frame: Id of the frame whose viewpoint is the fixed one; None: the most central.
        fps: Pictures per second.
        cell_height: Height of a cell in pixels.

    Returns:
        The number of pictures.

    Raises:
        SceneError: If the scene has no frame `fixed_frame`.
    """
    scene: Scene = datamanager.train_dataset.metadata["scene"]
    fixed = central_frame(scene) if fixed_frame is None else scene.index_of(fixed_frame)
    indices = chosen_frames(len(scene), frames)
    pictures = two_row_pictures(model, datamanager, query, indices, fixed, cell_height)
    shown = track(pictures, "Rendering the video ...", total=len(indices), console=CONSOLE, transient=True)
    return write_video(path, shown, fps)
