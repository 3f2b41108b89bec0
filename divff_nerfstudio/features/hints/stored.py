"""Stored hints as training has them, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from nerfstudio.utils.rich_utils import CONSOLE

from divff_nerfstudio.data.scene import SceneError, SceneFolder
from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.features.hints.planes import NO, YES
from divff_nerfstudio.features.store import HINTS, NO_FEATURE, FeatureStore, FeatureStoreError, finished_stores

_COUNTED = 100
"""Frames in which hints are counted, at most."""


def has_hints(folder: Path) -> bool:
    """Whether a scene's finished hints lie in a folder."""
    return folder in finished_stores(folder.parent)


def open_hints(scene: SceneFolder, folder: Path, command: str) -> FeatureStore:
    """Opens a scene's hints to train on them, and says in a line which they are.

    Args:
        scene: The scene.
        folder: Folder of their store.
        command: The line that extracts them.

    Raises:
        SceneError: If there are none, or they are of other frames.
        FeatureStoreError: If the store is damaged, or holds features.
    """
    if not has_hints(folder):
        raise SceneError(
            f"{folder.parent} lacks hints: run `{command}` with --hints.moving or --hints.hands, or set "
            "--pipeline.model.hints off."
        )
    store = FeatureStore.open(folder)
    if store.header.kind != HINTS:
        raise FeatureStoreError(f"{folder} holds {store.header.kind} features: call it so, or remove it.")
    if difference := store.other_frames(scene):
        raise SceneError(
            f"The hints in {folder} ({store.header.model}) were extracted {difference}: run `{command} --overwrite` "
            "with the --hints.moving and --hints.hands that they were made with."
        )
    CONSOLE.print(told(store, scene.splits["train"]), soft_wrap=True, markup=False)
    return store


def told(store: FeatureStore, frames: Int[np.ndarray, "frames"]) -> str:
    """In one sentence, which hints are used and how much they say.

    Args:
        store: The hints.
        frames: The frames that are trained on, by index in the scene.
    """
    chosen = frames[evenly_spaced(len(frames), _COUNTED)]
    shares = np.mean([_shares(store, int(frame)) for frame in chosen], axis=0)
    (moves, rests), (hand, other) = 100 * shares
    return (
        f"Hints of {len(frames)} training frames are used ({store.header.model}): of their pixels {moves:.1f} % move "
        f"and {rests:.1f} % do not, {hand:.1f} % are hand and {other:.1f} % are not; of the others nothing is known."
    )


def _shares(store: FeatureStore, frame: int) -> Float[np.ndarray, "2 2"]:
    """Shares of a frame's pixels of which yes and no is said, a row for each plane."""
    index, table = store.frame_features(frame)
    counts = np.bincount(index[index != NO_FEATURE], minlength=len(table))
    return np.stack([(table == state).T @ counts for state in (YES, NO)], -1) / index.size
