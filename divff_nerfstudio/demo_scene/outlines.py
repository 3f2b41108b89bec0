"""Outlines of masks as polygons, and a VGG Image Annotator project of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

CANVAS = (480, 270)
"""Width and height of the pictures on which polygons are drawn."""
MIN_AREA = 6
"""Pieces and holes of fewer pixels are left out."""


def area(corners: Float[np.ndarray, "n 2"]) -> float:
    """Signed area within a closed polygon."""
    x, y = corners.T
    return 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def outlines_of(mask: Bool[np.ndarray, "height width"]) -> list[Float[np.ndarray, "n 2"]]:
    """Trace a mask.

    Every connected piece gives one polygon. A hole is joined to the border around it by a cut of no width, so that
    filling the polygon by the even-odd rule leaves it out.

    Args:
        mask: what to trace.

    Returns:
        Corners (x, y) as shares of the picture's width and height; pixel (i, j) covers i..i+1, j..j+1 before division.
    """
    from skimage.measure import approximate_polygon, find_contours, label

    height, width = mask.shape
    pieces = np.asarray(label(mask, connectivity=1))
    outlines = []
    for piece in range(1, int(pieces.max()) + 1):
        inside = pieces == piece
        if inside.sum() < MIN_AREA:
            continue
        borders = find_contours(np.pad(inside, 1).astype(np.float32), 0.5)
        borders = [approximate_polygon(border, 0.35)[:-1, ::-1] - 0.5 for border in borders]
        borders = [border for border in borders if len(border) >= 3]
        borders.sort(key=lambda border: -abs(area(border)))
        outline = borders[0]
        for hole in borders[1:]:
            if abs(area(hole)) >= MIN_AREA:
                outline = _with_hole(outline, hole)
        outlines.append(outline / (width, height))
    return outlines


def _with_hole(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The outline with a cut to a hole, around it, and back."""
    gaps = np.linalg.norm(outline[:, None] - hole, axis=-1)
    i, j = np.unravel_index(int(gaps.argmin()), gaps.shape)
    around = np.concatenate([np.roll(hole, -j, axis=0), hole[j : j + 1]])
    return np.concatenate([outline[: i + 1], around, outline[i:]])


def annotator_project(
    name: str, classes: Sequence[str], frames: Mapping[str, Sequence[Bool[np.ndarray, "height width"]]]
) -> dict[str, Any]:
    """A project of the VGG Image Annotator (version 3).

    Args:
        name: of the project.
        classes: of objects.
        frames: for each picture's file name one mask per class.

    Returns:
        What its JSON file holds; a region's attribute "1" is the index of its class.
    """
    files, regions = {}, {}
    for number, (file_name, masks) in enumerate(frames.items(), start=1):
        files[str(number)] = {"fid": str(number), "fname": file_name, "type": 2, "loc": 1, "src": ""}
        for k, mask in enumerate(masks):
            for outline in outlines_of(mask):
                corners = np.round(outline * CANVAS, 2).ravel().tolist()
                regions[f"{number}_{len(regions):04d}"] = {
                    "vid": str(number), "flg": 0, "z": [], "xy": [7, *corners], "av": {"1": str(k)},
                }  # fmt: skip
    attribute = {
        "aname": "object",
        "anchor_id": "FILE1_Z0_XY1",
        "type": 4,
        "desc": "household object",
        "options": {str(k): label for k, label in enumerate(classes)},
        "default_option_id": "",
    }
    return {
        "project": {"pid": "__VIA_PROJECT_ID__", "pname": name, "creator": "divff demo-scene"},
        "config": {},
        "view": {},
        "attribute": {"1": attribute},
        "file": files,
        "metadata": regions,
    }
