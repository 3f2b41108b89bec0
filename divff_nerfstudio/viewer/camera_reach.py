"""Whether a camera of a file sees a scene at all, or stands so far away that the scene is no more than a speck."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from divff_nerfstudio.data.scene import SceneFolder
from divff_nerfstudio.viewer.camera_paths import CameraFileError, Crop

_REACH = 1000.0
"""How many times as far away as it is large a scene is a pixel of a picture."""


def require_in_reach(
    path: Path, positions: Float[np.ndarray, "cameras 3"], scene: SceneFolder, crop: Crop | None = None
) -> None:
    """Refuses cameras, and crops, that are nowhere near a scene: in other units, or of another scene.

    Args:
        path: Their file.
        positions: Where the cameras are.
        scene: The scene.
        crop: The part of the scene that they see; None: all.

    Raises:
        CameraFileError: For the farthest camera, or for the crop.
    """
    own = scene.camera_to_worlds[:, :, 3].astype(np.float64)
    middle = np.median(own, axis=0)
    extent = float(np.linalg.norm(np.ptp(own, axis=0)) + 2 * np.median(scene.fars))
    apart = np.linalg.norm(np.asarray(positions, np.float64) - middle, axis=1)
    farthest = int(apart.argmax())
    if apart[farthest] > _REACH * extent:
        raise CameraFileError(
            f"{path} has its camera {farthest + 1} at a distance of {apart[farthest]:g} from {scene.root}, all of "
            f"which fits into {extent:g}: give cameras of this scene, in its units."
        )
    if crop is None:
        return
    centre, size = crop.box.T.double().numpy(), crop.box.S.double().numpy()
    if np.linalg.norm(centre - middle) - np.linalg.norm(size) / 2 > extent:
        raise CameraFileError(
            f'{path} has a crop in which nothing of {scene.root} lies: set it anew in the viewer\'s tab "Render", or '
            "take it out."
        )
