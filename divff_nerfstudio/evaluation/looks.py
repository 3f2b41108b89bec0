"""The frames of a trained scene as things are found in them: stored segments, and rendered depth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape
from rich.progress import track

from divff_nerfstudio.arrays import scratch_array
from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.cache_dirs import is_writable
from divff_nerfstudio.data.annotations import resize_nearest
from divff_nerfstudio.data.ground_truth import read_npz_array
from divff_nerfstudio.data.rays import camera_directions, pixel_grid
from divff_nerfstudio.data.scene import SceneError, SceneFolder
from divff_nerfstudio.evaluation.options import THINGS, EvaluationError
from divff_nerfstudio.evaluation.trained_scene import TrainedScene
from divff_nerfstudio.evaluation.viewpoints import intrinsics_of
from divff_nerfstudio.features.store.reader import FeatureStore
from divff_nerfstudio.objects.sightings import Look
from divff_nerfstudio.objects.things import LookCamera, Things, find_things

HEIGHT = 72
"""Higher frames are looked at in this height: things are found by their middles, not by their edges."""
Looked = Callable[[int, int], None]
"""Told how many frames have been looked at, of how many."""
_FLAT = np.float32


def things_of(trained: TrainedScene, kept: Path | None = None, looked: Looked | None = None) -> Things:
    """Finds the things of a trained scene.

    Args:
        trained: The scene.
        kept: File in which rendered depths are kept from one call to the next; None: nowhere.
        looked: Called between the frames that are rendered; None: a bar in the console shows how far it is.

    Raises:
        EvaluationError: If there are no stored segments to group, or no room for what is looked up meanwhile.
    """
    store = segments_of(trained)
    cameras = look_cameras(trained.scene, intrinsics_of(trained.cameras))
    size = look_size(trained.scene)
    folder = _folder_beside(kept)
    try:
        distances, shares = rendered(trained, size, kept, folder, looked)
        looks = (look_of(store, i, camera, size, distances[i], shares[i]) for i, camera in enumerate(cameras))
        return find_things(looks, partial(features_of, store), cameras, folder)
    except OSError as error:
        raise EvaluationError(
            f"What the frames show cannot be kept in {folder or gettempdir()} while things are found "
            f"({error.strerror or error}): make room there."
        ) from error


def _folder_beside(kept: Path | None) -> Path | None:
    """The folder of a file that is kept, if it can be written to, for what is needed for a while only: unlike the one
    for temporary files, it is on a disk. None otherwise."""
    if kept is None:
        return None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return kept.parent if is_writable(kept.parent) else None


def segments_of(trained: TrainedScene) -> FeatureStore:
    """The store of the scene's segments.

    Raises:
        EvaluationError: If it has none.
    """
    store = trained.stores.get(THINGS)
    if store is None or not len(store.table):
        raise EvaluationError(
            f"{trained.scene.root} has no stored {THINGS} features, whose segments are the pieces of things: run "
            "`divff extract --sources segments`."
        )
    if store.header.shared_index:
        raise EvaluationError(
            f"{store.directory} holds features on a fixed grid, where things need segments: run `divff extract "
            "--sources segments`."
        )
    return store


def look_size(scene: SceneFolder) -> tuple[int, int]:
    """Height and width in which frames are looked at."""
    height = min(scene.height, HEIGHT)
    return height, max(1, round(scene.width * height / scene.height))


def look_cameras(scene: SceneFolder, intrinsics: Float[np.ndarray, "3 3"]) -> list[LookCamera]:
    """The frames' cameras, at the size of the looks.

    Args:
        scene: The scene.
        intrinsics: Of its frames; those of the rays that a model was trained with.
    """
    height, width = look_size(scene)
    small = intrinsics.astype(np.float64) * [[width / scene.width], [height / scene.height], [1.0]]
    return [LookCamera(pose.astype(np.float64), small) for pose in scene.camera_to_worlds]


def look_of(
    store: FeatureStore,
    frame: int,
    camera: LookCamera,
    size: tuple[int, int],
    distance: Float[np.ndarray, "height width"],
    shares: Float[np.ndarray, "2 height width"],
) -> Look:
    """A frame as things are found in it.

    Args:
        store: The scene's segments.
        frame: Index of the frame.
        camera: Its camera.
        size: Height and width of the look.
        distance: How far each pixel's point is from the camera, along the ray.
        shares: The actor's share of each pixel, and the dynamic layer's.
    """
    index, _ = store.frame_features(frame)
    directions = ray_directions(camera, size)
    points = camera.pose[:, 3] + directions * distance[..., None]
    return Look(frame, resize_nearest(index, *size), points, distance, shares[0], shares[1], camera.pose[:, 3])


def features_of(store: FeatureStore, frame: int) -> Float[np.ndarray, "n dim"]:
    """Features of a frame's segments, of unit length, embeddings as phrases are.

    Args:
        store: The scene's segments.
        frame: Index of the frame.
    """
    table = store.table[slice(*store.offsets[frame : frame + 2])].astype(np.float32)
    with torch.no_grad():
        embeddings = store.decode(torch.from_numpy(table)).cpu().numpy()
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-9)


def ray_directions(camera: LookCamera, size: tuple[int, int]) -> Float[np.ndarray, "height width 3"]:
    """Unit directions of the rays through pixels' centres, world coordinates."""
    intrinsics = torch.tensor([camera.intrinsics[i] for i in ((0, 0), (1, 1), (0, 2), (1, 2))])
    local, _ = camera_directions(pixel_grid(*size).double(), intrinsics)
    return local.numpy() @ camera.pose[:, :3].T


def rendered(
    trained: TrainedScene, size: tuple[int, int], kept: Path | None, folder: Path | None, looked: Looked | None = None
) -> tuple[Float[np.ndarray, "frames height width"], Float[np.ndarray, "frames 2 height width"]]:
    """Depths along the rays, and the shares of actor and dynamic layer, of all frames as the model renders them.

    Args:
        trained: The scene.
        size: Height and width.
        kept: File in which they are kept; one that is damaged, or of other sizes, is written anew.
        folder: Where they lie until nobody needs them any more; None: where temporary files do.
        looked: As for `things_of`.

    Returns:
        Both, memory-mapped.

    Raises:
        OSError: If there is no room for them.
    """
    shape, shares_shape = (len(trained.scene), *size), (len(trained.scene), 2, *size)
    distances, shares = scratch_array(folder, _FLAT, shape), scratch_array(folder, _FLAT, shares_shape)
    if kept is not None and kept.is_file():
        try:
            read_npz_array(kept, "distance", shape, _FLAT, into=distances)
            return distances, read_npz_array(kept, "shares", shares_shape, _FLAT, into=shares)
        except SceneError:
            CONSOLE.print(f"[yellow]{kept} is not of this scene and version, and is written anew.", soft_wrap=True)
    shown: Iterable[int] = range(len(trained.scene))
    if looked is None:
        shown = track(shown, "Looking at the frames ...", console=CONSOLE, transient=True)
    for i in shown:
        distances[i], shares[i] = _rendered_frame(trained, i, size)
        if looked is not None:
            looked(i + 1, len(trained.scene))
    if kept is not None:
        _keep(kept, distances, shares)
    return distances, shares


def _keep(path: Path, distances: np.ndarray, shares: np.ndarray) -> None:
    """Keeps what was rendered; a run that cannot be written to, as another's, is looked at anew each time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, distance=distances, shares=shares)
    except OSError as error:
        CONSOLE.print(f"[yellow]{escape(str(path))} could not be kept: {escape(str(error))}", soft_wrap=True)


def _rendered_frame(trained: TrainedScene, index: int, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    camera = trained.camera_at(index, float(trained.times[index]))
    for name, scale in (("fx", 1), ("cx", 1), ("fy", 0), ("cy", 0)):
        ratio = size[scale] / (trained.scene.height, trained.scene.width)[scale]
        setattr(camera, name, getattr(camera, name) * ratio)
    camera.height, camera.width = camera.height.clone().fill_(size[0]), camera.width.clone().fill_(size[1])
    view = trained.render(camera, outputs=("depth", "mask_actor", "mask_dynamic"))
    shares = np.stack([view.pictures[name][..., 0].numpy() for name in ("mask_actor", "mask_dynamic")])
    return view.pictures["depth"][..., 0].numpy(), shares
