"""Gaussians as PLY files in the layout of 3D Gaussian splatting (Kerbl 2023), one per layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from nerfstudio.cameras.cameras import Cameras

from divff_nerfstudio.fields.layers import LAYERS, Layer
from divff_nerfstudio.models.splat.gaussians import GaussianLayer
from divff_nerfstudio.models.splat.model import SplatModel
from divff_nerfstudio.models.splat.splats import Splats
from divff_nerfstudio.ply import write_ply


@torch.no_grad()
def write_layers(model: SplatModel, folder: Path, camera: Cameras) -> dict[Layer, Path]:
    """Writes each layer as it is at the time of a camera, in the world and in scene units.

    What does not live at that time is left out, as are layers without a Gaussian.

    Args:
        model: The trained model.
        folder: Where static.ply, dynamic.ply and actor.ply are written.
        camera: One camera: its time is that of all layers, and the actor is where it is for that camera.

    Returns:
        The files by layer.
    """
    written: dict[Layer, Path] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, splats in model.gaussians_at(camera).items():
        path = folder / f"{name}.ply"
        write_ply(path, ply_rows(model.gaussian_layer(name), splats, float(model.space.length)))
        written[name] = path
    for name in LAYERS:
        if name not in written:
            (folder / f"{name}.ply").unlink(missing_ok=True)  # of an earlier export
    return written


def ply_rows(layer: GaussianLayer, splats: Splats, length: float) -> dict[str, Float32[np.ndarray, "gaussians"]]:
    """Properties of Gaussians under their names in the PLY file, in their order.

    Args:
        layer: Where the Gaussians come from: coefficients of spherical harmonics are its.
        splats: The Gaussians at a moment.
        length: Length of the scene, in scene units.
    """
    coefficients = layer.rows["harmonics"][splats.ids].transpose(1, 2).flatten(1)  # all of red, of green, of blue
    columns = {
        ("x", "y", "z"): splats.means * length,
        ("nx", "ny", "nz"): torch.zeros_like(splats.means),
        tuple(f"f_dc_{i}" for i in range(3)): layer.rows["colours"][splats.ids],
        tuple(f"f_rest_{i}" for i in range(coefficients.shape[1])): coefficients,
        ("opacity",): torch.logit(splats.opacities, eps=1e-6)[:, None],
        tuple(f"scale_{i}" for i in range(3)): (splats.scales * length).log(),
        tuple(f"rot_{i}" for i in range(4)): torch.nn.functional.normalize(splats.quats, dim=-1),
    }
    return {
        name: values[:, i].cpu().numpy().astype(np.float32)
        for names, values in columns.items()
        for i, name in enumerate(names)
    }
