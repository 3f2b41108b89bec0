"""Segments by SAM 2.1 (Ravi et al. 2024): a grid of points, in the picture and in crops of it, each asked for masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import ceil
from threading import Lock
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float, Int, UInt8
from nerfstudio.configs.base_config import InstantiateConfig
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from divff_nerfstudio.features.clips import IMAGENET
from divff_nerfstudio.features.pretrained import load_pretrained, weights_fingerprint
from divff_nerfstudio.features.segments import Segmenter
from divff_nerfstudio.schema import Amount, Share

SIZES = ("tiny", "small", "base-plus", "large")
"""Sizes of SAM 2.1 that the hub has, as facebook/sam2.1-hiera-SIZE."""
_CROP_OVERLAP = 512 / 1500
_EDGE = 20
"""A mask of a crop that comes this near (in pixels) to where the crop was cut is taken for a part of something."""
_STABLE = 1.0
"""Logits by which the threshold is moved up and down to see how stable a mask is."""
_PIXELS = 16384
_PROMPTS = {"cpu": 32, "cuda": 256}
_CROPS = {"cuda": 5}
"""Crops that are looked at in one go: on a GPU the whole picture and its first layer."""
_CLEANERS = 4
"""Threads that rid masks of small regions."""
_PUBLISHED_PIXELS = 456 * 256

_Box = tuple[int, int, int, int]


@dataclass
class SamSegmenterConfig(InstantiateConfig):
    """Options of SAM 2.1's automatic masks; the defaults are DIV-FF's."""

    _target: tyro.conf.Suppress[type] = field(default_factory=lambda: SamSegmenter)
    """target class to instantiate"""
    weights: str = "large"
    """Size of SAM 2.1 (tiny, small, base-plus, large), another model's name on the Hugging Face hub, or a folder with
    config.json and model.safetensors."""
    points_per_side: Annotated[int, Field(ge=1, le=256)] = 32
    """Points along each side of the grid that is asked."""
    crop_layers: Annotated[int, Field(ge=0, le=4)] = 1
    """Layers of crops that are asked, too: the first has 2x2, the second 4x4, ..."""
    predicted_iou: Share = 0.7
    """Least quality that the model itself foresees for a mask."""
    stability: Share = 0.85
    """Least IoU between a mask and itself when its threshold is moved."""
    nms: Share = 0.7
    """Of two masks with a larger IoU than this the better one stays."""
    min_region: Amount = 225
    """Smaller holes are filled and smaller islands removed; in pixels of a 456x256 picture, in others in proportion."""
    order: Literal["published", "area"] = "published"
    """Which mask is on top where several overlap: the later in SAM's own order, as published, or the smaller."""
    working_side: Annotated[int, Field(ge=16, le=8192)] = 512
    """Masks of pictures with a longer side than this are found at this size, and enlarged."""


class SamSegmenter(Segmenter):
    """SAM 2.1 asked at every point of a grid.

    Args:
        config: Options.
    """

    def __init__(self, config: SamSegmenterConfig):
        self.config = config
        self.device = torch.device("cpu")
        self._lock = Lock()
        name = f"facebook/sam2.1-hiera-{config.weights}" if config.weights in SIZES else config.weights
        self.model = load_pretrained("Sam2Model", name, "--segments.sam.weights")
        self._side = int(self.model.config.prompt_encoder_config.image_size)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model's weights."""
        return weights_fingerprint(self.model)

    def to(self, device: torch.device) -> SamSegmenter:
        """Moves the model; on a GPU it computes in bfloat16, and ahead of who needs the masks."""
        self.device = device
        self.ahead = device.type == "cuda"
        self.model.to(device)
        return self

    def settings(self) -> dict[str, Any]:
        """Name and options, and which weights."""
        options = asdict(self.config)
        del options["_target"]
        return {"name": "sam2", **options, "fingerprint": self.fingerprint}

    def segment(self, picture: UInt8[np.ndarray, "height width 3"]) -> Int[np.ndarray, "height width"]:
        """The segment of each pixel: the last of its masks; -1 where there is none."""
        masks = self.masks(picture)
        last = len(masks) - 1 - masks[::-1].argmax(0) if len(masks) else np.zeros(picture.shape[:2], np.int64)
        return np.where(masks.any(0), last, -1)

    @torch.inference_mode()
    def masks(self, picture: UInt8[np.ndarray, "height width 3"]) -> Bool[np.ndarray, "n height width"]:
        """Automatic masks, which may overlap, the last on top."""
        height, width = picture.shape[:2]
        factor = min(1.0, self.config.working_side / max(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        with self._lock:  # what is done on the device is done for one picture at a time
            masks = self._found_masks(picture, size)
        masks = self._without_small_regions(masks)
        if self.config.order == "area":
            masks = masks[masks.sum((1, 2)).argsort(descending=True, stable=True)]
        if size != (height, width):
            masks = interpolate(masks[:, None].to(torch.uint8), (height, width), mode="nearest-exact")[:, 0].bool()
        return masks.cpu().numpy()

    def _found_masks(
        self, picture: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
    ) -> Bool[Tensor, "n h w"]:
        """Good masks of a picture and its crops, none of them like another, in the size at which they are found."""
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(self.device).permute(2, 0, 1)[None].float() / 255
        boxes = list(crop_boxes(*size, self.config.crop_layers))
        found, smallness, at_once = [], [], _CROPS.get(self.device.type, 1)
        for start in range(0, len(boxes), at_once):
            part = boxes[start : start + at_once]
            for box, embeddings in zip(part, self._crop_embeddings(pixels, size, part), strict=True):
                masks, scores = self._crop_masks(embeddings, size, box)
                masks = masks[mask_nms(masks, scores, self.config.nms)]
                found.append(_placed(masks, box, size))
                top, left, bottom, right = box
                smallness += [1 / ((bottom - top) * (right - left))] * len(masks)
        masks = torch.cat(found)
        return masks[mask_nms(masks, torch.tensor(smallness, device=self.device), self.config.nms)]

    @torch.inference_mode()
    def box_masks(
        self, picture: UInt8[np.ndarray, "height width 3"], boxes: Float[Tensor, "n 4"]
    ) -> Bool[np.ndarray, "n height width"]:
        """The mask of what each box holds.

        Args:
            picture: The picture.
            boxes: Left, top, right and bottom in pixels of the picture.
        """
        height, width = picture.shape[:2]
        if len(boxes) == 0:
            return np.zeros((0, height, width), bool)
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(self.device).permute(2, 0, 1)[None].float() / 255
        scale = torch.tensor([self._side / width, self._side / height] * 2)
        found = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            embeddings = self._embeddings([pixels])
            for part in (boxes * scale).to(self.device).split(_PROMPTS.get(self.device.type, 32)):
                answer = self.model(image_embeddings=embeddings, input_boxes=part[None], multimask_output=False)
                logits = interpolate(answer.pred_masks[0].float(), (height, width), mode="bilinear")[:, 0]
                found.append((logits > 0).cpu().numpy())
        return np.concatenate(found)

    def _embeddings(self, pictures: Sequence[Float[Tensor, "1 3 _ _"]]) -> list[Tensor]:
        """What the model sees in pictures, in [0, 1], or crops of one; a picture for each row of the levels."""
        side = (self._side, self._side)
        seen = torch.cat([interpolate(each, side, mode="bilinear", antialias=True) for each in pictures])
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] for values in IMAGENET)
        return self.model.get_image_embeddings((seen - mean) / std)

    def _crop_embeddings(
        self, pixels: Float[Tensor, "1 3 height width"], size: tuple[int, int], boxes: Sequence[_Box]
    ) -> list[list[Tensor]]:
        """What the model sees in each of several crops.

        Args:
            pixels: The picture, in [0, 1].
            size: Height and width at which masks are found.
            boxes: Top, left, bottom and right of the crops at that size.
        """
        down, across = pixels.shape[2] / size[0], pixels.shape[3] / size[1]
        crops = [
            pixels[:, :, round(top * down) : round(bottom * down), round(left * across) : round(right * across)]
            for top, left, bottom, right in boxes
        ]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            levels = self._embeddings(crops)
        return [[level[i : i + 1] for level in levels] for i in range(len(boxes))]

    def _crop_masks(
        self, embeddings: list[Tensor], size: tuple[int, int], box: _Box
    ) -> tuple[Bool[Tensor, "n h w"], Float[Tensor, "n"]]:
        """Good masks of a crop and the quality that the model foresees for them.

        Args:
            embeddings: What the model sees in the crop.
            size: Height and width at which masks are found.
            box: Top, left, bottom and right of the crop at that size.
        """
        top, left, bottom, right = box
        found, scores = [], []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            for points in self._points().split(_PROMPTS.get(self.device.type, 32)):
                answer = self.model(
                    image_embeddings=embeddings, input_points=points[None, :, None], multimask_output=True
                )
                quality = answer.iou_scores.flatten().float()
                good = quality >= self.config.predicted_iou
                logits = interpolate(
                    answer.pred_masks.flatten(0, 2)[good][:, None].float(),
                    (bottom - top, right - left),
                    mode="bilinear",
                )[:, 0]
                stable = _stability(logits) >= self.config.stability
                masks = logits[stable] > 0
                inside = ~_cut_off(masks, box, size)
                found.append(masks[inside])
                scores.append(quality[good][stable][inside])
        return torch.cat(found), torch.cat(scores)

    def _points(self) -> Float[Tensor, "points 2"]:
        """The grid's points, x and y in pixels of the model's input."""
        count = self.config.points_per_side
        along = (torch.arange(count, device=self.device) + 0.5) * (self._side / count)
        return torch.cartesian_prod(along, along).flip(-1)

    def _without_small_regions(self, masks: Bool[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
        """Masks without small holes and islands; of those that have become alike one stays, an untouched one first."""
        min_area = self.config.min_region * masks.shape[1] * masks.shape[2] / _PUBLISHED_PIXELS
        with ThreadPoolExecutor(_CLEANERS) as pool:
            rid = list(pool.map(lambda mask: filled_and_rid(mask, min_area), masks.cpu().numpy()))
        cleaned = np.array(rid, bool).reshape(masks.shape)
        result = torch.from_numpy(cleaned).to(self.device)
        untouched = (result == masks).all(2).all(1).float()
        return result[mask_nms(result, untouched, self.config.nms)]


def crop_boxes(height: int, width: int, layers: int) -> Iterable[_Box]:
    """The whole picture, then its crops, layer by layer, as SAM cuts them.

    Layer k has 2^k crops along each side, which overlap by 512/1500 of the shorter side, divided by 2^(k-1).

    Yields:
        Top, left, bottom and right in pixels.
    """
    yield 0, 0, height, width
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(_CROP_OVERLAP * min(height, width) * 2 / count)
        high, wide = (ceil((overlap * (count - 1) + side) / count) for side in (height, width))
        for left in (k * (wide - overlap) for k in range(count)):
            for top in (k * (high - overlap) for k in range(count)):
                yield top, left, min(top + high, height), min(left + wide, width)


def mask_nms(masks: Bool[Tensor, "n h w"], scores: Float[Tensor, "n"], threshold: float) -> Int[Tensor, "kept"]:
    """Which masks stay when each one removes all with a lower score that overlap it too much.

    All pairs are compared at once, and the greedy choice is found as a fixed point, so that nothing leaves the device.

    Args:
        masks: The masks.
        scores: Their scores; of equal ones the first counts as higher.
        threshold: IoU above which the lower one goes.

    Returns:
        Indices of those that stay, the highest score first.
    """
    order = scores.argsort(descending=True, stable=True)
    flat = masks[order].flatten(1)
    shared = torch.zeros(len(flat), len(flat), device=masks.device)
    with torch.autocast(masks.device.type, enabled=False):
        for part in flat.split(_PIXELS, dim=1):
            values = part.float()
            shared += values @ values.T  # counts of pixels: exact in single precision
    areas = shared.diagonal()
    union = areas[:, None] + areas[None] - shared
    over = torch.triu(shared > threshold * union, diagonal=1)
    kept = torch.ones(len(flat), dtype=torch.bool, device=masks.device)
    while True:
        still = ~(over & kept[:, None]).any(0)
        if torch.equal(still, kept):
            return order[kept]
        kept = still


def filled_and_rid(mask: Bool[np.ndarray, "h w"], min_area: float) -> Bool[np.ndarray, "h w"]:
    """A mask without holes and islands of fewer than `min_area` pixels; its largest island stays in any case."""
    import cv2

    def sizes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, regions, statistics, _ = cv2.connectedComponentsWithStats(values.astype(np.uint8), connectivity=8)
        return regions, statistics[1:, cv2.CC_STAT_AREA]

    regions, areas = sizes(~mask)
    mask = mask | np.append(False, areas < min_area)[regions]
    regions, areas = sizes(mask)
    if len(areas) == 0:
        return mask
    stay = areas >= min_area
    stay[areas.argmax()] = True
    return np.append(False, stay)[regions]


def _stability(logits: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """IoU of the masks at a raised and at a lowered threshold; 0 for a mask that is empty at both."""
    return (logits > _STABLE).sum((1, 2)) / (logits > -_STABLE).sum((1, 2)).clamp_min(1)


def _cut_off(masks: Bool[Tensor, "n h w"], box: _Box, size: tuple[int, int]) -> Bool[Tensor, "n"]:
    """Whether a mask is empty, or comes near an edge of its crop that is no edge of the picture."""
    top, left, bottom, right = box
    rows, columns = masks.any(2), masks.any(1)
    cut = ~rows.any(1)
    if top > _EDGE:
        cut |= rows[:, : _EDGE + 1].any(1)
    if left > _EDGE:
        cut |= columns[:, : _EDGE + 1].any(1)
    if bottom < size[0] - _EDGE:
        cut |= rows[:, -_EDGE - 1 :].any(1)
    if right < size[1] - _EDGE:
        cut |= columns[:, -_EDGE - 1 :].any(1)
    return cut


def _placed(masks: Bool[Tensor, "n h w"], box: _Box, size: tuple[int, int]) -> Bool[Tensor, "n height width"]:
    """Masks of a crop in the whole picture."""
    top, left, bottom, right = box
    return torch.nn.functional.pad(masks, (left, size[1] - right, top, size[0] - bottom))
