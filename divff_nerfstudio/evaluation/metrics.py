"""Scores of pictures, masks and relevancy maps, from arrays alone; a score that does not exist is None, not NaN."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

OBJECT_THRESHOLD = 0.7
"""Relevancy above which a pixel counts as the object asked for (DIV-FF, image features)."""
AFFORDANCE_THRESHOLD = 0.54
"""Relevancy above which a pixel counts as the place of the action asked for (DIV-FF, video features)."""
MAX_PSNR = 100.0
"""PSNR of equal pictures, which has no number, in dB."""
LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"
"""File of torchvision's AlexNet, in torch's folder of downloaded checkpoints."""


def psnr(
    image: Float[np.ndarray, "height width 3"],
    target: Float[np.ndarray, "height width 3"],
    where: Bool[np.ndarray, "height width"] | None = None,
) -> float | None:
    """Peak signal-to-noise ratio of a picture with colours in [0, 1].

    Args:
        image: The picture.
        target: What it should be.
        where: The pixels to look at; None: all.

    Returns:
        Decibels, at most `MAX_PSNR`; None if `where` has no pixel.
    """
    error = np.square(np.asarray(image, np.float64) - np.asarray(target, np.float64))
    error = error if where is None else error[where]
    if error.size == 0:
        return None
    return float(-10 * np.log10(max(error.mean(), 10 ** (-MAX_PSNR / 10))))


def ssim(image: Float[np.ndarray, "height width 3"], target: Float[np.ndarray, "height width 3"]) -> float | None:
    """Structural similarity (Wang et al. 2004) with torchmetrics' Gaussian window of 11 pixels.

    Returns:
        A number up to 1, or None for pictures smaller than the window.
    """
    if min(image.shape[:2]) < 11:
        return None
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    pair = (torch.from_numpy(np.asarray(part, np.float32)).permute(2, 0, 1)[None] for part in (image, target))
    return float(structural_similarity_index_measure(*pair, data_range=1.0))  # pyright: ignore[reportArgumentType]


def lpips(image: Float[np.ndarray, "height width 3"], target: Float[np.ndarray, "height width 3"]) -> float | None:
    """Perceptual distance (LPIPS with AlexNet, Zhang et al. 2018) by torchmetrics.

    Returns:
        A number from 0 on, smaller for more alike; None where AlexNet's weights are not on this machine (they are
        never downloaded amid an evaluation, see `lpips_weights`) or a picture is too small for it.
    """
    if not lpips_weights().is_file() or min(image.shape[:2]) < 32:
        return None
    import torch

    network = _lpips_network()
    pair = (torch.from_numpy(np.asarray(part, np.float32)).permute(2, 0, 1)[None] for part in (image, target))
    with torch.no_grad():
        distance = float(network(*(part.clamp(0, 1) for part in pair)))
    network.reset()
    return distance


def lpips_weights(download: bool = False) -> Path:
    """Where torchvision keeps AlexNet's weights.

    Args:
        download: Fetch them (244 MB) if they are not there.

    Raises:
        OSError: If they cannot be fetched.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS
    if download and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(f"https://download.pytorch.org/models/{LPIPS_WEIGHTS}", str(path), "7be5be79")
    return path


@lru_cache(maxsize=1)
def _lpips_network() -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)


def iou(found: Bool[np.ndarray, "height width"], truth: Bool[np.ndarray, "height width"]) -> float:
    """Intersection over union of two masks; 0 if both are empty."""
    return float((found & truth).sum() / max((found | truth).sum(), 1))


def average_precision(scores: Float[np.ndarray, "*shape"], truth: Bool[np.ndarray, "*shape"]) -> float | None:
    """Area under the precision-recall curve, as scikit-learn sums it.

    Args:
        scores: The larger, the more likely positive.
        truth: What is positive.

    Returns:
        A number in [0, 1], or None if nothing is positive.
    """
    if not truth.any():
        return None
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth.ravel(), scores.ravel()))
