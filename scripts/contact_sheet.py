"""Makes a contact sheet of a scene: frames of its video in order, or its annotations beside them.

python scripts/contact_sheet.py SCENE OUT.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from divff_nerfstudio.data.scene import load_scene


@dataclass
class ContactSheetConfig:
    """Put frames of a scene's video side by side."""

    scene: Annotated[Path, tyro.conf.Positional]
    """Folder of the scene."""
    output: Annotated[Path, tyro.conf.Positional]
    """Picture to write."""
    columns: int = 4
    """Pictures in a row."""
    rows: int = 4
    """Rows."""
    border: int = 3
    """Pixels between pictures."""
    colours: int = 256
    """Size of a PNG's palette; a small one makes a small file."""

    def main(self) -> None:
        """Writes the sheet."""
        scene = load_scene(self.scene, check_frames=False)
        pictures = []
        for index in np.linspace(0, len(scene.frame_ids) - 1, self.rows * self.columns).round().astype(int):
            path = scene.video_frame_path(int(scene.video_numbers[index])) or scene.image_paths[index]
            with Image.open(path) as picture:
                pictures.append(picture.convert("RGB"))
        width, height = pictures[0].size
        step_x, step_y = width + self.border, height + self.border
        size = (self.columns * step_x - self.border, self.rows * step_y - self.border)
        sheet = Image.new("RGB", size, (255, 255, 255))
        for k, picture in enumerate(pictures):
            sheet.paste(picture, (k % self.columns * step_x, k // self.columns * step_y))
        self.output.parent.mkdir(parents=True, exist_ok=True)
        sheet.quantize(self.colours, dither=Image.Dither.FLOYDSTEINBERG).save(self.output, optimize=True)


if __name__ == "__main__":
    tyro.cli(ContactSheetConfig).main()
