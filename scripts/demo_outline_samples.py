"""Views of random kitchens with the instance that each pixel shows, for the network that finds outlines."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from demo_encoder_samples import HELD_OUT, SIZES, Kitchen
from jaxtyping import UInt8
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track

from divff_nerfstudio.atomic import atomic_path

CHANCE = 128
"""In so many kitchens the objects are what chance gives; in the others half of the views have a black pan on the hob,
whose outline is the hardest to see."""
VIEWS = 12
"""Of each kitchen, every one with other objects, places, person and light."""


@dataclass(frozen=True)
class Views:
    """Pictures, each with its instances."""

    pictures: UInt8[np.ndarray, "n height width 3"]
    """As the demo's video has them."""
    instances: UInt8[np.ndarray, "n height width"]
    """Number of the instance at each pixel."""


def load_views(folder: Path, kitchens: int, processes: int) -> tuple[Views, Views]:
    """Views of kitchens to train on, and of those held out; rendered first if the folder lacks them.

    Args:
        folder: Where they are kept.
        kitchens: How many kitchens.
        processes: Processes to render with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in range(kitchens) if not _file(folder, seed).is_file()]
    if missing:
        with ProcessPoolExecutor(processes) as pool:
            rendered = pool.map(_render, [folder] * len(missing), missing)
            deque(track(rendered, "kitchens", len(missing), console=CONSOLE), maxlen=0)
    held_out = range(0, kitchens, HELD_OUT)
    return _read(folder, [seed for seed in range(kitchens) if seed not in held_out]), _read(folder, held_out)


def _file(folder: Path, seed: int) -> Path:
    return folder / f"views_{seed:03d}.npz"


def _render(folder: Path, seed: int) -> None:
    kitchen = Kitchen(seed, SIZES[:1], pans=0.5 if seed >= CHANCE else 0.0)
    pictures, instances = [], []
    for _ in range(VIEWS):
        kitchen.shuffle()
        picture, shown = kitchen.picture(float(kitchen.random.random()))
        pictures.append(picture)
        instances.append(shown.astype(np.uint8))
    with atomic_path(_file(folder, seed)) as path:
        np.savez(path, pictures=np.stack(pictures), instances=np.stack(instances))


def _read(folder: Path, seeds: Sequence[int]) -> Views:
    parts = [np.load(_file(folder, seed)) for seed in seeds]
    return Views(*(np.concatenate([part[name] for part in parts]) for name in ("pictures", "instances")))
