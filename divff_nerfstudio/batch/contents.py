"""What tells that a step is finished: what its files hold. Each class says what is wrong with them, None where nothing
is, and loads nothing heavy, since all scenes of a batch are looked at when it begins.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from divff_nerfstudio.cache_dirs import features_dir
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.schema import Number, Record, read_json
from divff_nerfstudio.training_folder import checkpoints_in, step_in_name, steps_of


@dataclass(frozen=True)
class SceneIsWhole:
    """A scene folder that can be opened, with all of its pictures."""

    scene: Path
    """Its folder."""
    video_frames: bool = False
    """Whether it has to have the frames between them, too, from the first to the last."""

    def __call__(self) -> str | None:
        """What is wrong with it."""
        from divff_nerfstudio.data.scene import load_scene

        try:
            found = load_scene(self.scene, check_frames=False)
        except DivffError as error:
            return _clause(error)
        missing = [path for path in found.image_paths if not (path.is_file() and path.stat().st_size)]
        if missing:
            return f"{missing[0]} and {len(missing) - 1} other pictures are missing or empty"
        if not self.video_frames:
            return None
        wanted = range(int(found.video_numbers.min()), int(found.video_numbers.max()) + 1)
        lacking = len(set(wanted) - set(found.video_numbers_available.tolist()))
        return f"{found.video_dir} lacks {lacking} of the video's frames" if lacking else None


@dataclass(frozen=True)
class FeaturesAreWhole:
    """Stores of features of all frames of a scene."""

    scene: Path
    """Its folder."""
    root: Path | None
    """Folder of the stores; None: the scene's own."""
    wanted: tuple[str, ...]
    """Kinds of features or names of sources, of each of which there must be a store; names of classes are not looked
    at."""

    def __call__(self) -> str | None:
        """What is wrong with them."""
        from divff_nerfstudio.arrays import ArrayFaultError
        from divff_nerfstudio.data.scene import load_scene
        from divff_nerfstudio.features.store.header import HeaderRecord
        from divff_nerfstudio.features.store.reader import stores_of

        root = features_dir(self.scene) if self.root is None else self.root
        try:
            ids = load_scene(self.scene, check_frames=False).frame_ids.tolist()
            headers = {
                folder: read_json(folder / "header.json", HeaderRecord, "a store's header", "extract anew")
                for folder in stores_of(self.scene, self.root).values()
            }
            there = {name for header in headers.values() for name in (header.kind, header.source)}
            lacking = [name for name in self.wanted if ":" not in name and name not in there]
            if lacking:
                return f"{root} lacks the features {', '.join(lacking)}"
            for folder, header in headers.items():
                if header.frame_ids != ids:
                    return f"the features in {folder} are of other frames than the scene's"
                _look_at_arrays(folder, header)
        except (DivffError, ArrayFaultError, OSError) as error:
            return _clause(error)
        return None


def _look_at_arrays(folder: Path, header: object) -> None:
    """Refuses arrays that do not fit a store's header, as those of a file that was cut short."""
    import numpy as np

    from divff_nerfstudio.arrays import ArrayFaultError, open_array
    from divff_nerfstudio.features.store.header import HeaderRecord

    assert isinstance(header, HeaderRecord)
    name = "table.npy"
    try:
        table = open_array(folder / name, np.float16, 2)
        name = "offsets.npy"
        offsets = open_array(folder / name, np.int64, 1)
        name = "index.npy"
        index = open_array(folder / name, np.uint16, 3)
    except ArrayFaultError as fault:
        raise ArrayFaultError(f"{folder / name} {fault}") from None
    frames = len(header.frame_ids)
    planes = 1 if header.shared_index else frames
    if table.shape[1] != header.dimension or len(offsets) != frames + 1 or index.shape[0] != planes:
        raise ArrayFaultError(f"the arrays in {folder} are of other sizes than its header says")


@dataclass(frozen=True)
class TrainingIsWhole:
    """A run whose checkpoint is that of its last step."""

    run: Path
    """Its folder."""
    imported: bool = False
    """Whether it was made of somebody's checkpoint, of whatever step."""

    def __call__(self) -> str | None:
        """What is wrong with it."""
        config, found = self.run / "config.yml", checkpoints_in(self.run / "nerfstudio_models")
        steps = 0 if self.imported and config.is_file() else steps_of(self.run)
        if steps is None:
            return f"{config} does not tell how many steps there are"
        if not found:
            return f"{self.run} has no checkpoint"
        done = (step_in_name(found[-1]) or 0) + 1
        if done < steps:
            return f"the last checkpoint in {self.run} is of step {done} of {steps}"
        return None if zipfile.is_zipfile(found[-1]) else f"{found[-1]} is cut short"


class Scores(Record):
    """What a batch needs of a scores.json."""

    facts: dict[str, str]
    totals: Annotated[dict[str, Number], Field(min_length=1)]


@dataclass(frozen=True)
class ScoresAreWhole:
    """An evaluation's scores and its page."""

    folder: Path
    """Their folder."""

    def __call__(self) -> str | None:
        """What is wrong with them."""
        try:
            read_scores(self.folder)
        except DivffError as error:
            return _clause(error)
        page = self.folder / "report.html"
        return None if _ends_with(page, b"</html>") else f"{page} is missing or cut short"


def read_scores(folder: Path) -> Scores:
    """The scores of an evaluation.

    Raises:
        DivffError: If there are none.
    """
    return read_json(folder / "scores.json", Scores, "a file of scores of `divff evaluate`", "evaluate anew")


@dataclass(frozen=True)
class PointsAreWhole:
    """A PLY file, or a folder of some."""

    path: Path
    """The file or folder."""

    def __call__(self) -> str | None:
        """What is wrong with them."""
        from plyfile import PlyData, PlyParseError

        paths = sorted(self.path.glob("*.ply")) if self.path.is_dir() else [self.path]
        if not paths:
            return f"{self.path} holds no PLY file"
        for path in paths:
            try:
                content = PlyData.read(str(path))
            except (PlyParseError, OSError, ValueError) as error:
                return f"{path} is no whole PLY file ({error})"
            if not any(len(element) for element in content.elements):
                return f"{path} holds no point"
        return None


def _ends_with(path: Path, end: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return file.read().rstrip().endswith(end)


def _clause(error: Exception) -> str:
    """An error's sentence as a part of another one."""
    return str(error).rstrip(".")


def option(words: Sequence[str], name: str) -> list[str]:
    """What is given behind an option on a command line, however it is written; of several, the last counts."""
    found: list[str] = []
    for number, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key.replace("_", "-") != name:
            continue
        found = [value] if equals else []
        if not equals:
            for each in words[number + 1 :]:
                if each.startswith("--"):
                    break
                found.append(each)
    return found
