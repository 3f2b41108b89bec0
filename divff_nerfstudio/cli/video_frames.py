"""``divff convert video-frames``: the frames between a scene's sampled ones, of its video."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image
from pydantic import Field

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.convert.alignment import Alignment
from divff_nerfstudio.convert.layout import (
    MAX_SIDE,
    QUALITY,
    is_written,
)
from divff_nerfstudio.convert.names import MAX_NUMBER, ConvertError, NumberingError
from divff_nerfstudio.convert.pictures import (
    ArchiveFrames,
    FrameSource,
    VideoFrames,
    open_frames,
    resized,
)
from divff_nerfstudio.convert.staging import fingerprint, staged
from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.data.video_files import video_name

_JPEG = b"\xff\xd8\xff"
"""How every JPEG begins."""


@dataclass
class VideoFramesOfScene:
    """The frames between a scene's sampled ones, which clips of video features need, from EPIC-KITCHENS.

    They are compared with the sampled frames; where they do not line up, nothing is written and the offset is said.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """The video (P01_01.MP4), the archive of its RGB frames (P01_01.tar), or a folder of them."""
    data: Path
    """Folder of the scene; the frames get into its folder high_res_video."""
    width: Annotated[int, Field(ge=16, le=MAX_SIDE)] = 456
    """Of the frames, pixels."""
    height: Annotated[int, Field(ge=16, le=MAX_SIDE)] = 256
    """Of the frames, pixels."""
    margin: Annotated[int, Field(ge=0, le=MAX_NUMBER)] = 32
    """Frames before the first and behind the last sampled one to cut as well."""
    offset: Annotated[int, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)] = 0
    """Number of a frame in the source less its number in the scene."""
    overwrite: bool = False
    """Replace the frames that are there."""

    def main(self) -> None:
        """Cuts them; what was interrupted goes on where it stopped.

        Raises:
            DivffError: Frames are missing, damaged or not those of the scene.
        """
        scene = load_scene(self.data)
        try:
            source = open_frames(self.source)
        except NumberingError as error:
            raise ConvertError(f"{error.fault}: name each by its number in the video.") from None
        first = max(0, int(scene.video_numbers.min()) - self.margin)
        last = int(scene.video_numbers.max()) + self.margin
        settings = {
            "kind": "video-frames", "source": fingerprint(self.source), "size": [self.width, self.height],
            "range": [first, last, self.offset],
        }  # fmt: skip
        alignment = Alignment(scene, self.source, self.offset)
        with staged(scene.root / "high_res_video", settings, self.overwrite, [self.source]) as folder:
            try:
                written = self._cut(source, folder, range(first, last + 1), alignment)
                alignment.check()
                self._check_count(scene.video_numbers, written)
            except ConvertError:
                shutil.rmtree(folder)
                raise
        CONSOLE.print(
            f"{scene.root / 'high_res_video'}: {len(written)} frames, in line with the sampled ones.", markup=False
        )

    def _cut(self, source: FrameSource, folder: Path, wanted: Collection[int], alignment: Alignment) -> set[int]:
        """Writes the frames; returns the numbers, as the scene counts, of all that are there."""
        from rich.progress import track

        present = {n for n in wanted if is_written(folder / video_name(n))}
        todo = [n for n in wanted if n not in present or alignment.wants(n)]
        if source.numbers is not None:
            there = {number - self.offset for number in source.numbers}
            todo = [number for number in todo if number in there]
        for number, picture in track(self._pictures(source, todo), total=len(todo), description="Cutting frames"):
            alignment.add(number, picture)
            if number not in present:
                self._save(source, number, picture, folder / video_name(number))
                present.add(number)
        return present

    def _pictures(self, source: FrameSource, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Frames by the scene's numbers; a video may end before the margin does."""
        if isinstance(source, VideoFrames):
            wanted = set(numbers)
            for number, picture in source.read_until_end(number + self.offset for number in wanted):
                yield number - self.offset, picture
        else:
            for number, picture in source.read([number + self.offset for number in numbers]):
                yield number - self.offset, picture

    def _save(self, source: FrameSource, number: int, picture: np.ndarray, path: Path) -> None:
        """As JPEG; a JPEG of an archive that has the size already is taken as it is."""
        with atomic_path(path, sync=False) as temporary:
            if picture.shape[:2] == (self.height, self.width) and isinstance(source, ArchiveFrames):
                content = source.content(number + self.offset)
                if content.startswith(_JPEG):
                    temporary.write_bytes(content)
                    return
            Image.fromarray(resized(picture, (self.width, self.height))).save(temporary, quality=QUALITY)

    def _check_count(self, sampled: np.ndarray, written: set[int]) -> None:
        """The frames must reach from the first sampled one to the last, without a gap."""
        inside = range(int(sampled.min()), int(sampled.max()) + 1)
        missing = [number for number in inside if number not in written]
        if missing:
            raise ConvertError(
                f"{self.source} lacks {len(missing)} of the {len(inside)} frames between the first and the last "
                f"sampled one, first {missing[0] + self.offset}: give the whole video."
            )
