"""The segments of all frames, in files: a long video has millions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt16

from divff_nerfstudio.arrays import ScratchRows
from divff_nerfstudio.objects.sightings import SAMPLES, FeaturesOf, Sighting

_COLUMNS = np.dtype(
    [
        ("frame", np.int32),
        ("row", np.uint16),
        ("centre", np.float32, 3),
        ("box", np.int32, 4),
        ("area", np.int32),
        ("depth", np.float64),
        ("cut", np.bool_),
        ("touched", np.bool_),
        ("actor", np.float64),
        ("dynamic", np.float64),
        ("samples", np.uint8),
    ]
)
"""What is told of a segment; its points are in a file of their own."""


class SightingTable:
    """The segments of all frames, numbered in the order of the frames.

    Args:
        folder: Where its files lie, which have no names; None: where temporary files do.
    """

    def __init__(self, folder: Path | None = None):
        self._columns = ScratchRows(folder, _COLUMNS)
        self._points = ScratchRows(folder, np.float32)
        self._starts, self._eyes = [0], []

    def append(self, found: Sequence[Sighting], eye: Float[np.ndarray, "3"]) -> None:
        """Adds the next frame, until any is read.

        Args:
            found: Its segments.
            eye: Where its camera is, world coordinates.
        """
        columns = np.zeros(len(found), _COLUMNS)
        points = np.zeros((len(found), SAMPLES, 3), np.float32)
        for i, each in enumerate(found):
            known = each.frame, each.row, each.centre, each.box, each.area, each.depth
            columns[i] = (*known, each.cut, each.touched, each.actor, each.dynamic, len(each.points))
            points[i, : len(each.points)] = each.points
        self._columns.append(columns)
        self._points.append(points)
        self._starts.append(self._starts[-1] + len(found))
        self._eyes.append(eye)

    @cached_property
    def columns(self) -> np.ndarray:
        """What is told of each segment, memory-mapped, by the names of `Sighting`."""
        return self._columns.mapped()

    @cached_property
    def eyes(self) -> Float[np.ndarray, "frames 3"]:
        """Where each frame's camera is, world coordinates."""
        return np.stack(self._eyes)

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return len(self._starts) - 1

    def of_frame(self, frame: int) -> Sightings:
        """A frame's segments."""
        return Sightings(self, np.arange(self._starts[frame], self._starts[frame + 1]))

    def numbers_at(self, frame: int, rows: UInt16[np.ndarray, "*pixels"]) -> Int[np.ndarray, "*pixels"]:
        """Number of the segment at pixels of a frame; -1 where there is none.

        Args:
            frame: Its index.
            rows: Row of the frame's part of the store at each of the pixels.
        """
        own = self.of_frame(frame)
        of_row = np.full(np.iinfo(np.uint16).max + 1, -1)
        of_row[own.column("row")] = own.numbers
        return of_row[rows]

    def points(self, numbers: Int[np.ndarray, "n"]) -> Float32[np.ndarray, "points 3"]:
        """Points of the surfaces of segments together, world coordinates."""
        samples = self.columns["samples"][numbers]
        return self._mapped_points[numbers][np.arange(SAMPLES) < samples[:, None]]

    def sighting(self, number: int) -> Sighting:
        """The segment of a number."""
        own = self.columns[number]
        return Sighting(
            frame=int(own["frame"]),
            row=int(own["row"]),
            points=self._mapped_points[number, : own["samples"]],
            centre=own["centre"],
            box=tuple(own["box"].tolist()),
            area=int(own["area"]),
            depth=float(own["depth"]),
            cut=bool(own["cut"]),
            touched=bool(own["touched"]),
            actor=float(own["actor"]),
            dynamic=float(own["dynamic"]),
        )

    @cached_property
    def _mapped_points(self) -> Float32[np.ndarray, "sightings samples 3"]:
        return self._points.mapped()


class Sightings(Sequence[Sighting]):
    """Some of the segments.

    Args:
        table: All segments.
        numbers: Numbers of these.
    """

    def __init__(self, table: SightingTable, numbers: Int[np.ndarray, "n"]):
        self.table, self.numbers = table, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, at: int) -> Sighting: ...
    @overload
    def __getitem__(self, at: slice) -> Sightings: ...
    def __getitem__(self, at: int | slice) -> Sighting | Sightings:
        if isinstance(at, slice):
            return Sightings(self.table, self.numbers[at])
        return self.table.sighting(self.numbers[at])

    def __iter__(self) -> Iterator[Sighting]:
        return map(self.table.sighting, self.numbers)

    def column(self, name: str) -> np.ndarray:
        """What is told of each, by a name of `Sighting`."""
        return self.table.columns[name][self.numbers]

    def features(self, of: FeaturesOf) -> Float[np.ndarray, "n dim"]:
        """Their features, if they are of one frame.

        Args:
            of: Gives the frame's.
        """
        if not len(self):
            return np.zeros((0, 0))
        return of(int(self.column("frame")[0]))[self.column("row")].astype(np.float64)

    def best(self, of: Bool[np.ndarray, "n"] | None = None) -> Sighting:
        """The one that shows most: large, and not cut off by the picture's border.

        Args:
            of: Which are asked; None: all.
        """
        chosen = np.arange(len(self)) if of is None else np.flatnonzero(of)
        order = np.lexsort((-self.column("area")[chosen], self.column("cut")[chosen]))
        return self[int(chosen[order[0]])]

    def nearest(self, frame: int) -> Sighting:
        """The one next in time to a frame, and of those the largest."""
        return self[int(np.lexsort((-self.column("area"), np.abs(self.column("frame") - frame)))[0])]
