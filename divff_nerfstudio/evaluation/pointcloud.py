"""The scene at one moment as points of several views, fused, with colour, layer, relevancies and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track

from divff_nerfstudio.atomic import atomic_path
from divff_nerfstudio.evaluation.options import CloudOptions, EvaluationError, Features, MovingLayer
from divff_nerfstudio.evaluation.trained_scene import AskedView, TrainedScene
from divff_nerfstudio.evenly import evenly_spaced
from divff_nerfstudio.features.pca import fit_feature_basis, project
from divff_nerfstudio.fields.layers import LAYERS
from divff_nerfstudio.ply import write_ply

_COORDINATES = 1 << 20
"""Cells on each side of the middle along an axis: three coordinates fit into one 63-bit number."""


def write_cloud(
    path: Path,
    trained: TrainedScene,
    time: float,
    queries: Sequence[tuple[str, str]] = (),
    kind: Features = "image",
    options: CloudOptions | None = None,
) -> int:
    """Renders views of one moment, fuses their points, and writes them as PLY.

    A point has x, y, z, red, green, blue, layer (0 static, 1 dynamic, 2 actor), for each query relevancy_0, ... (named
    in the file's comments), and, where the run has features, their three principal components feature_0..2. Positions
    are rays' origins plus unit directions times the depth, which is the distance along the ray.

    Args:
        path: The .ply file.
        trained: The scene.
        time: The moment, 0 to 1.
        queries: Kind of features and phrase of each relevancy.
        kind: Which features are written.
        options: What it holds.

    Returns:
        The number of points.

    Raises:
        EvaluationError: If no view has a point, or cells are too small for the scene.
        QueryError: If a query cannot be answered.
    """
    options = options or CloudOptions()
    own = trained.frame_at(time)
    others = [frame for frame in trained.trained if frame != own]
    chosen = evenly_spaced(len(others), options.views - 1) if options.views > 1 else []
    frames = [own, *(others[i] for i in chosen)]
    fused: _Fused | None = None
    basis = None
    for frame in track(frames, "Fusing views ...", console=CONSOLE, transient=True):
        hide: tuple[MovingLayer, ...] = options.hide if frame == own else (*options.hide, "actor")
        view = trained.render(trained.camera_at(frame, time), hide)
        kept = reliable(view, options.opaque, options.edge)
        values = _values(view, queries)
        features = view.embeddings(kind)
        if features is not None:
            if basis is None:
                basis = fit_feature_basis(features.reshape(-1, features.shape[-1]).cpu().numpy())
            values["feature"] = project(features.cpu(), basis).numpy()
            if options.full_features:
                values["full"] = features.cpu().float().numpy()
        if fused is None:
            depth = view.pictures["depth"].numpy()[kept]
            if not depth.size:
                continue
            fused = _Fused(options.cell * float(np.median(depth)), np.median(view.points.numpy()[kept], axis=0))
        fused.add(view.points.numpy()[kept], {name: value[kept] for name, value in values.items()})
    if fused is None or not len(fused):
        raise EvaluationError(f"{path} would have no point: lower --cloud.opaque or raise --cloud.edge.")
    points, values = fused.means()
    full = values.pop("full", None)
    comments = [f"relevancy_{i}: {phrase} ({features} features)" for i, (features, phrase) in enumerate(queries)]
    write_ply(path, _columns(points, values), comments)
    files = {each: path.with_name(f"{path.stem}_{each}_features.npy") for each in get_args(Features)}
    for left in files.values():
        left.unlink(missing_ok=True)  # of an earlier export: its rows are not those of these points
    if full is not None:
        with atomic_path(files[kind]) as temporary:
            np.save(temporary, full.astype(np.float16))
    return len(points)


def reliable(view: AskedView, opaque: float, edge: float) -> Bool[np.ndarray, "height width"]:
    """The pixels whose depth is that of a surface: enough of the ray is stopped, and no neighbour is much apart."""
    depth = view.pictures["depth"].numpy()[..., 0]
    kept = (view.pictures["accumulation"].numpy()[..., 0] >= opaque) & np.isfinite(depth) & (depth > 0)
    for axis in (0, 1):
        jump = np.abs(np.diff(depth, axis=axis)) > edge * np.minimum(*_neighbours(depth, axis))
        before, after = _neighbours(kept, axis)
        before &= ~jump
        after &= ~jump
    return kept


def _neighbours(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """All but the last, and all but the first, along an axis, as views."""
    return (values[:-1], values[1:]) if axis == 0 else (values[:, :-1], values[:, 1:])


def _values(
    view: AskedView, queries: Sequence[tuple[str, str]]
) -> dict[str, Float[np.ndarray, "height width channels"]]:
    """What a view says of each pixel's point; of the layers, their shares."""
    masks = [view.pictures[f"mask_{layer}"] for layer in LAYERS if layer != "static"]
    static = (view.pictures["accumulation"] - sum(masks)).clamp_min(0)  # pyright: ignore[reportArgumentType]
    values = {"colour": view.pictures["rgb"].numpy(), "layer": torch.cat((static, *masks), -1).numpy()}
    if queries:
        maps = [view.relevancies(kind, [phrase]) for kind, phrase in queries]
        values["relevancy"] = np.concatenate(maps, axis=-1)
    return values


class _Fused:
    """Sums of what points in the same cell say; its memory grows with the cells, not with the views.

    Args:
        cell: Edge of a cell, scene units.
        middle: A point of the scene, from which cells are counted.
    """

    def __init__(self, cell: float, middle: Float[np.ndarray, "3"]):
        self.cell, self.middle = cell, middle.astype(np.float64)
        self._keys: Int[np.ndarray, "cells"] = np.empty(0, np.int64)
        self._sums: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(
        self, points: Float[np.ndarray, "points 3"], values: Mapping[str, Float[np.ndarray, "points channels"]]
    ) -> None:
        """Adds a view's points.

        Raises:
            EvaluationError: If one lies too many cells away.
        """
        places = np.floor((points - self.middle) / self.cell)
        if len(points) and np.abs(places).max() >= _COORDINATES:
            raise EvaluationError(
                f"Cells of {self.cell:.3g} scene units are too small for the scene: raise --cloud.cell."
            )
        cells = places.astype(np.int64) + _COORDINATES
        keys = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
        new = {"point": points, "count": np.ones((len(points), 1)), **values}
        order = np.argsort(keys, kind="stable")
        own, starts = np.unique(keys[order], return_index=True)
        everything = np.union1d(self._keys, own)
        before, now = np.searchsorted(everything, self._keys), np.searchsorted(everything, own)
        for name, value in new.items():
            sums = np.zeros((len(everything), value.shape[1]), np.float64 if name == "point" else np.float32)
            if name in self._sums:
                sums[before] = self._sums[name]
            if len(own):
                sums[now] += np.add.reduceat(value[order], starts, axis=0)
            self._sums[name] = sums
        self._keys = everything

    def means(self) -> tuple[Float[np.ndarray, "cells 3"], dict[str, Float[np.ndarray, "cells channels"]]]:
        """Mean point of each cell, and mean of what its points say."""
        means = {name: sums / self._sums["count"] for name, sums in self._sums.items()}
        del means["count"]
        return means.pop("point"), means


def _columns(
    points: Float[np.ndarray, "points 3"], values: Mapping[str, Float[np.ndarray, "points channels"]]
) -> dict[str, np.ndarray]:
    """The file's properties by name, in their order."""
    columns = {axis: points[:, i].astype("<f4") for i, axis in enumerate("xyz")}
    colours = (np.clip(values["colour"], 0, 1) * 255).round().astype("u1")
    columns |= {name: colours[:, i] for i, name in enumerate(("red", "green", "blue"))}
    columns["layer"] = values["layer"].argmax(-1).astype("u1")
    for name in ("relevancy", "feature"):
        if name in values:
            columns |= {f"{name}_{i}": column.astype("<f4") for i, column in enumerate(values[name].T)}
    return columns
