"""gsplat's rasterisation where there is a GPU, and the same in PyTorch where there is none."""

from __future__ import annotations

import shutil
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.models.splat.compositing import Projected, composite_gaussians

MAX_CHANNELS = 32
"""Channels that gsplat renders in one pass; more cost another."""


class KernelsError(DivffError):
    """gsplat cannot run on the GPU of this machine."""


def rasterization(
    means: Float[Tensor, "gaussians 3"],
    quats: Float[Tensor, "gaussians 4"],
    scales: Float[Tensor, "gaussians 3"],
    opacities: Float[Tensor, "gaussians"],
    colors: Float[Tensor, "gaussians channels"],
    viewmats: Float[Tensor, "cameras 4 4"],
    Ks: Float[Tensor, "cameras 3 3"],
    width: int,
    height: int,
    **options: Any,
) -> tuple[Float[Tensor, "cameras {height} {width} channels"], Float[Tensor, "cameras {height} {width} 1"], dict]:
    """Renders Gaussians with gsplat on CUDA and with `rasterization_in_torch` elsewhere.

    Whether they are on CUDA is all that decides, never whether gsplat's kernels can be built: a machine with a compiler
    and no GPU makes gsplat compile in vain. (No Gaussians at all are no work for a GPU.)

    Args:
        means: Centres in the world.
        quats: Rotations, w first, of any length.
        scales: Standard deviations along the axes, in scene units.
        opacities: In [0, 1].
        colors: What is composited.
        viewmats: World to camera (right, down, forward).
        Ks: Intrinsics in pixels.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        options: Those of `rasterization_in_torch`.

    Returns:
        Sums of `colors`, sums of the weights, and facts ("means2d", "radii", "depths", ...), unpacked.
    """
    if not means.is_cuda or not len(means):
        return rasterization_in_torch(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **options)
    import gsplat

    require_kernels()
    return gsplat.rasterization(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height, packed=False, **options
    )


def missing_for_kernels() -> tuple[str, ...]:
    """What gsplat needs to compile its kernels for CUDA at its first call, and has not; nothing if it has them."""
    missing = tuple(program for program in ("nvcc", "ninja") if shutil.which(program) is None)
    return missing if find_spec("gsplat.csrc") is None else ()


@cache
def require_kernels() -> None:
    """Looks whether gsplat has its kernels for CUDA, or can compile them.

    Raises:
        KernelsError: If not.
    """
    if missing := missing_for_kernels():
        version = f" {torch.version.cuda}" if torch.version.cuda else ""
        raise KernelsError(
            f"gsplat compiles its kernels at the first call, for which {' and '.join(missing)} must be on PATH: "
            f"install NVIDIA's CUDA toolkit{version} and `pip install ninja`, or give --machine.device-type cpu "
            "(to commands without that option: CUDA_VISIBLE_DEVICES= before them)."
        )


def rasterization_in_torch(
    means: Float[Tensor, "gaussians 3"],
    quats: Float[Tensor, "gaussians 4"],
    scales: Float[Tensor, "gaussians 3"],
    opacities: Float[Tensor, "gaussians"],
    colors: Float[Tensor, "gaussians channels"],
    viewmats: Float[Tensor, "cameras 4 4"],
    Ks: Float[Tensor, "cameras 3 3"],
    width: int,
    height: int,
    near_plane: float = 0.01,
    backgrounds: Float[Tensor, "cameras channels"] | None = None,
) -> tuple[Float[Tensor, "cameras {height} {width} channels"], Float[Tensor, "cameras {height} {width} 1"], dict]:
    """`rasterization` in PyTorch, for machines without a GPU: gsplat's projection and our compositing.

    Args:
        means: As in `rasterization`, like what follows.
        quats: Rotations.
        scales: Standard deviations.
        opacities: Opacities.
        colors: What is composited.
        viewmats: World to camera.
        Ks: Intrinsics.
        width: Width of the image.
        height: Height of the image.
        near_plane: Least depth that is seen.
        backgrounds: Added where light is left; none: nothing.
    """
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

    covariances, _ = _quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    radii, means2d, depths, conics, _ = _fully_fused_projection(
        means,
        covariances,  # pyright: ignore[reportArgumentType]
        viewmats,
        Ks,
        width,
        height,
        near_plane=near_plane,
    )
    images, alphas = [], []
    for camera in range(len(viewmats)):
        projected = Projected(means2d[camera], conics[camera], radii[camera], depths[camera], opacities)
        image, alpha = composite_gaussians(projected, colors, width, height)
        if backgrounds is not None:
            image = image + (1 - alpha) * backgrounds[camera]
        images.append(image)
        alphas.append(alpha)
    facts = {
        "means2d": means2d,
        "radii": radii,
        "depths": depths,
        "conics": conics,
        "opacities": opacities.expand(len(viewmats), -1),
        "width": width,
        "height": height,
        "n_cameras": len(viewmats),
        "gaussian_ids": None,
    }
    return torch.stack(images), torch.stack(alphas), facts


def harmonics(
    degree: int, directions: Float[Tensor, "gaussians 3"], coefficients: Float[Tensor, "gaussians bases 3"]
) -> Float[Tensor, "gaussians 3"]:
    """Colours seen from directions: spherical harmonics as in 3D Gaussian splatting, not below 0.

    Args:
        degree: Degree up to which they are summed, 0 to 3.
        directions: From the camera to the Gaussians, of any length.
        coefficients: (degree + 1)^2 of them or more.
    """
    if directions.is_cuda:
        from gsplat import spherical_harmonics

        require_kernels()
        colours = spherical_harmonics(degree, directions, coefficients)
    else:
        from gsplat.cuda._torch_impl import _spherical_harmonics

        colours = _spherical_harmonics(degree, directions, coefficients)
    return (colours + 0.5).clamp_min(0.0)
