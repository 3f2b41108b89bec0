"""Hints by folders of masks, as any tool writes them: a picture for each frame, called as the frame is."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8
from nerfstudio.utils.rich_utils import CONSOLE

from divff_nerfstudio.data.masks import fitted_mask, frame_finder, mask_values
from divff_nerfstudio.data.scene import SceneError
from divff_nerfstudio.features.hints.planes import UNKNOWN, HintPlane, stated
from divff_nerfstudio.features.pictures import Pictures

_SUFFIXES = (".bmp", ".png", ".tif", ".tiff", ".jpg", ".jpeg")


class MaskPlane(HintPlane):
    """Masks: inside yes, outside no; frames without one are unknown.

    All masks are read when this is made, so that a fault is told before the first frame.

    Args:
        pictures: Pictures of the scene.
        folder: Folder of masks, each called as the frame's picture is, or ending in its number in the video.
        option: The option that names the folder, for messages.
        labels: Values that are inside; none: all but 0, of which a mask may then hold one.

    Raises:
        SceneError: If a mask is damaged, of another shape than the frames, transparent or soft, a frame has two, or
            none has one; if no mask holds a value that is named, or masks hold several and none is named.
    """

    name = "masks"

    def __init__(self, pictures: Pictures, folder: Path, option: str, labels: Collection[int] = ()):
        super().__init__(pictures)
        self._folder, self._option, self._labels = folder, option, tuple(sorted(set(labels)))
        self._files = self._found()
        self._looks: set[tuple[int, ...]] = set()
        digest = hashlib.sha256()
        for frame, path in sorted(self._files.items()):
            self.states(frame)
            digest.update(f"{frame} ".encode() + hashlib.sha256(path.read_bytes()).digest())
        self._content = digest.hexdigest()
        if absent := sorted(set(self._labels) - {look[0] for look in self._looks}):
            raise SceneError(
                f"No mask in {folder} holds {' or '.join(map(str, absent))}: give values of these masks with "
                f"{option}-values."
            )

    def settings(self) -> dict[str, Any]:
        """What the masks hold, and which values are inside."""
        return {"name": self.name, "masks": self._content, "labels": list(self._labels)}

    def states(self, frame: int) -> Int8[np.ndarray, "h w"]:
        """Yes inside, no outside."""
        scene, path = self.pictures.scene, self._files.get(frame)
        if path is None:
            return np.full((1, 1), UNKNOWN, np.int8)
        values = mask_values(path, named=bool(self._labels))
        if self._labels:
            if values.shape[2] > 1 and (values != values[..., :1]).any():
                raise SceneError(
                    f"{path} is in colour, so that {self._option}-values names nothing in it: write labels as grey "
                    "values or with a palette."
                )
            inside = np.isin(values[..., :1], self._labels)
            self._looks.update((int(value),) for value in np.unique(values[inside[..., 0], 0]))
        else:
            inside = (values != 0).any(-1, keepdims=True)
            looks = np.unique(values[inside[..., 0]], axis=0)
            known = bool(self._looks)
            self._looks.update(tuple(map(int, look)) for look in looks)
            if len(self._looks) > 1:
                holds = (
                    "another value than those before it" if known and len(looks) == 1 else f"{len(looks) + 1} values"
                )
                raise SceneError(
                    f"{path} holds {holds}, so that what is inside would be a guess: name those that are with "
                    f"{self._option}-values 1 2, or write 0 outside and one other value inside, the same in all masks "
                    "(soft masks: cut them at a half)."
                )
        yes = fitted_mask(path, inside, scene)[..., 0]
        return stated(yes, ~yes)

    def _found(self) -> dict[int, Path]:
        """The mask of each frame that has one."""
        scene, frame_of = self.pictures.scene, frame_finder(self.pictures.scene)
        shown = [path for path in sorted(self._folder.iterdir()) if not path.name.startswith(".")]
        files = [path for path in shown if path.suffix.lower() in _SUFFIXES]
        found: dict[int, Path] = {}
        strange: list[Path] = []
        for path in files:
            frame = frame_of(path.name)
            if frame is None:
                strange.append(path)
            elif frame in found:
                raise SceneError(
                    f"{found[frame]} and {path.name} are masks of one frame, {scene.image_paths[frame].name}: take one "
                    "of them out of the folder."
                )
            else:
                found[frame] = path
        example = scene.image_paths[0].stem
        if not found:
            what = f"has {strange[0].name}, which no frame is called" if strange else "has no masks"
            raise SceneError(
                f"{self._folder} {what}: call masks as the frames are, such as {example}.png, or let names end in the "
                f"frames' numbers, for {self._option}."
            )
        if strange:
            CONSOLE.print(
                f"{len(strange)} of {len(files)} masks in {self._folder}, {strange[0].name} among them, are of no "
                f"frame of {scene.root} and are not read: frames are called as {example}.",
                soft_wrap=True,
                markup=False,
            )
        return found
