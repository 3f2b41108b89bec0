"""Baselines that find things by their names in a picture: boxes of OWL-ViT or OWLv2, their masks by SAM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.ops import box_convert, nms

from divff_nerfstudio.evaluation.baselines.base import Baseline, at_threshold
from divff_nerfstudio.evaluation.results import FrameResult, Task
from divff_nerfstudio.features.pretrained import load_companions, load_pretrained
from divff_nerfstudio.features.sam import SamSegmenter, SamSegmenterConfig

MAX_BOXES = 20
"""Boxes of one class in one picture, the best first."""
OVERLAP = 0.5
"""Of two boxes of a class with a larger IoU the better one stays."""
MIN_SCORE = 1e-3
"""Boxes with a lower score are left out."""
_OPTION = "--models.owl"


class Owl:
    """OWL-ViT (Minderer et al. 2022) or OWLv2 (Minderer et al. 2023) of transformers.

    Args:
        name: Its name on the hub, or a folder with its files.
        device: Device to compute on.

    Raises:
        EncoderError: If it is not to be had.
    """

    def __init__(self, name: str, device: torch.device):
        self.model = load_pretrained("AutoModelForZeroShotObjectDetection", name, _OPTION).to(device)
        (self._processor,) = load_companions(("AutoProcessor",), name, _OPTION)
        self._padded = self.model.config.model_type == "owlv2"
        self.device = device

    @torch.inference_mode()
    def boxes(
        self, picture: UInt8[np.ndarray, "height width 3"], phrases: Sequence[str]
    ) -> list[tuple[Float[Tensor, "n 4"], Float[Tensor, "n"]]]:
        """Boxes of each phrase (left, top, right, bottom in pixels) and their scores, the best first."""
        asked = self._processor(text=[list(phrases)], images=picture, return_tensors="pt").to(self.device)
        answer = self.model(**asked)
        height, width = picture.shape[:2]
        # OWLv2 sees the picture padded to a square at its right and bottom, OWL-ViT stretched to one.
        wide, high = (max(height, width),) * 2 if self._padded else (width, height)
        corners = box_convert(answer.pred_boxes[0], "cxcywh", "xyxy").cpu() * torch.tensor([wide, high, wide, high])
        corners = corners.minimum(torch.tensor([width, height, width, height])).clamp_min(0)
        found = []
        for scores in answer.logits[0].sigmoid().T.cpu():
            kept = nms(corners, scores, OVERLAP)[:MAX_BOXES]
            kept = kept[scores[kept] >= MIN_SCORE]
            found.append((corners[kept], scores[kept]))
        return found


class OwlSam(Baseline):
    """Boxes and masks in the rendered frame."""

    title = "OWL boxes, SAM masks, on the rendering"

    def prepare(self, tasks: Mapping[str, Task]) -> None:
        """Loads both models."""
        if any(task.usual for task in tasks.values()):
            self._owl = Owl(self.models.owl, self.device)
            self._sam: SamSegmenter = SamSegmenterConfig(weights=self.models.sam.weights).setup().to(self.device)

    def picture(self, result: FrameResult) -> Float[np.ndarray, "height width 3"]:
        """The picture that is looked at, 0..1."""
        return result.outputs["rgb"]

    def relevancies(self, result: FrameResult, task: Task) -> Float[np.ndarray, "height width classes"] | None:
        """At each pixel the score of the best box whose mask covers it; objects and actions are asked once each."""
        if not task.usual:
            return None
        prompt = self.models.owl_prompt if task.group == "objects" else "{}"
        phrases = [prompt.replace("{}", name) for name in task.annotations.names]
        picture = (self.picture(result) * 255).round().clip(0, 255).astype(np.uint8)
        found = self._owl.boxes(picture, phrases)
        masks = iter(self._sam.box_masks(picture, torch.cat([boxes for boxes, _ in found])))
        scores = np.zeros((*picture.shape[:2], len(phrases)), np.float32)
        for number, (_, values) in enumerate(found):
            for value in values.tolist():
                where = next(masks)
                scores[where, number] = np.maximum(scores[where, number], np.float32(value))
        return at_threshold(scores, self.models.owl_threshold, task.threshold)


class OwlSamReal(OwlSam):
    """Boxes and masks in the frame itself."""

    title = "OWL boxes, SAM masks, on the frame itself"

    def picture(self, result: FrameResult) -> Float[np.ndarray, "height width 3"]:
        """The frame."""
        return result.target
