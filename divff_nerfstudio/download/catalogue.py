"""What is public, where it lies, and what is not public.

Where each address was read:

- `metadata`, `neuraldiff`: README and ``get_started.sh`` of the repository dichotomies/NeuralDiff.
- `frames`: the same ``get_started.sh``; the data set is doi 10.5523/bris.296c4vv03j7lb2ejq3874ej3vm.
- `divff`: README of the repository lmur98/DIV_FF_CVPR, which names a folder on Google Drive.
- `egovideo`: README of the repository OpenGVLab/EgoVideo, which names a file on Google Drive.
- `ooal`: README of the repository Reagan1311/OOAL, which names a file on Google Drive.
- `object-annotations`, `affordance-annotations`: a later README of lmur98/DIV_FF_CVPR, which names two files on Google
  Drive; the repository and the release archives do not hold them.

Unconfirmed, since no source states it: any checksum or size (they are recorded at the first download), the folders
inside the archives beyond ``SCENE/...`` (so that scenes are found by name at any depth), whether Google Drive lets a
program fetch these files (it often refuses), and that `object-annotations` and `affordance-annotations` are complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCENES = (
    "P01_01", "P03_04", "P04_01", "P05_01", "P06_03", "P08_01", "P09_02", "P13_03", "P16_01", "P21_01",
)  # fmt: skip
"""The scenes of EPIC-Diff."""

What = Literal[
    "metadata", "frames", "neuraldiff", "divff", "egovideo", "ooal", "object-annotations", "affordance-annotations"
]
"""Names of what can be fetched."""

GIGABYTE = 10**9


def _drive(identifier: str) -> tuple[str, str]:
    """The address for programs and the page for people of a file on Google Drive."""
    download = f"https://drive.usercontent.google.com/download?id={identifier}&export=download&confirm=t"
    return download, f"https://drive.google.com/file/d/{identifier}/view"


@dataclass(frozen=True)
class Item:
    """Something public."""

    title: str
    """What it is, in a few words."""
    url: str
    """Address that a program fetches."""
    page: str
    """Address that a person opens."""
    file_name: str
    """Name of the file here; of a cloud folder, that of the folder."""
    kind: Literal["archive", "weights", "folder"]
    """An archive (zip or tar, told by its content), a file of weights, or a cloud folder."""
    target: str = ""
    """Folder below the root into which the scenes of an archive are unpacked, or in which the file lies."""
    sha256: str | None = None
    """Checksum, where its publisher states one; None: recorded at the first download."""
    max_bytes: int = 100 * GIGABYTE
    """Bytes that an archive may unpack to, at most."""


_RELEASE = "https://www.robots.ox.ac.uk/~vadim/neuraldiff/release"
_DIVFF_PAGE = "https://drive.google.com/drive/folders/1ZEmAE6Zz6mL2J6BtWwwZuFGFHAg8WnnX"
_EGOVIDEO = _drive("1k6f1eRdcL17IvXtdX_J8WxNbju2Ms3AW")
_OOAL = _drive("1pJAiwPsnjn3QhmUj24XMDXL9bFsyJedZ")
_OBJECTS = _drive("1UUt6MBlCBu_i4uei3D34IGEvd8HUrYvH")
_AFFORDANCES = _drive("1QdN5KK1DpRoJqrkS-DR413vxZUmUCuBF")

CATALOGUE: dict[What, Item] = {
    "metadata": Item(
        "cameras and motion masks of EPIC-Diff",
        f"{_RELEASE}/EPIC-Diff-annotations.tar.gz",
        "https://github.com/dichotomies/NeuralDiff",
        "EPIC-Diff-annotations.tar.gz",
        "archive",
        max_bytes=20 * GIGABYTE,
    ),
    "frames": Item(
        "sampled frames of EPIC-Diff",
        "https://data.bris.ac.uk/datasets/tar/296c4vv03j7lb2ejq3874ej3vm.zip",
        "https://doi.org/10.5523/bris.296c4vv03j7lb2ejq3874ej3vm",
        "296c4vv03j7lb2ejq3874ej3vm.zip",
        "archive",
    ),
    "neuraldiff": Item(
        "NeuralDiff's checkpoints",
        f"{_RELEASE}/ckpts.tar.gz",
        "https://github.com/dichotomies/NeuralDiff",
        "ckpts.tar.gz",
        "archive",
        target="checkpoints/neuraldiff",
        max_bytes=5 * GIGABYTE,
    ),
    "divff": Item(
        "DIV-FF's checkpoints",
        _DIVFF_PAGE,
        _DIVFF_PAGE,
        "divff",
        "folder",
        target="checkpoints",
    ),
    "egovideo": Item("EgoVideo's weights", *_EGOVIDEO, "ckpt_4frames.pth", "weights", target="weights"),
    "ooal": Item("OOAL's weights", *_OOAL, "ooal.pth", "weights", target="weights"),
    "object-annotations": Item(
        "object annotations", *_OBJECTS, "object_annotations.zip", "archive", target="object_annotations"
    ),
    "affordance-annotations": Item(
        "affordance annotations",
        *_AFFORDANCES,
        "affordance_annotations.zip",
        "archive",
        target="affordance_annotations",
    ),
}
"""All items by name."""

NOT_PUBLIC = (
    "The object and affordance annotations of the paper are in no public release archive or repository; a later README "
    "links two files on Google Drive, which --what object-annotations affordance-annotations tries. The video frames "
    "between the sampled ones come from EPIC-KITCHENS: divff convert video-frames cuts them."
)
"""The plain word on what is missing."""
