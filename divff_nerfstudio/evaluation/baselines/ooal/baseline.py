"""OOAL as baseline of affordances: it looks at the held-out frame itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from divff_nerfstudio.evaluation.baselines.base import Baseline, at_threshold
from divff_nerfstudio.evaluation.baselines.ooal.network import Ooal
from divff_nerfstudio.evaluation.baselines.ooal.text import TokenRows
from divff_nerfstudio.evaluation.baselines.ooal.weights import find_weights, load_ooal, trained_names
from divff_nerfstudio.evaluation.results import FrameResult, Task
from divff_nerfstudio.features.clips import IMAGENET
from divff_nerfstudio.features.encoder_loading import load_encoder

SIDE = 224
"""Height and width at which the network sees a picture."""
THRESHOLD = 0.5
"""Rescaled probability above which a pixel is found."""
_MEAN, _STD = np.array(IMAGENET, np.float32)


class OoalBaseline(Baseline):
    """Maps of the actions in the frame itself, each rescaled to its least and its greatest value."""

    title = "OOAL on the frame itself"

    def prepare(self, tasks: Mapping[str, Task]) -> None:
        """Loads the network, and embeds the actions."""
        self._texts: dict[str, Float[Tensor, "classes dim"]] = {}
        asked = {name: task for name, task in tasks.items() if task.group == "affordances" and task.usual}
        if not asked:
            return
        path = find_weights(self.models.ooal, self.trained.scene.root)
        network = load_ooal(path)
        learner = network.prompt_learner
        tokens = TokenRows(str(path), trained_names(len(learner.token_prefix)), learner, self._table)
        with torch.inference_mode():
            self._texts = {
                name: network.encode_text(*tokens(task.annotations.names)).to(self.device)
                for name, task in asked.items()
            }
        self._network = network.to(self.device)

    def relevancies(self, result: FrameResult, task: Task) -> Float[np.ndarray, "height width classes"] | None:
        """The maps of actions; objects are not asked."""
        if task.name not in self._texts:
            return None
        maps = rescaled_maps(self._network, result.target, self._texts[task.name])
        return at_threshold(maps, THRESHOLD, task.threshold)

    def _table(self) -> Float[Tensor, "tokens dim"]:
        model: Any = load_encoder(self.models.ooal_clip).model
        return model.token_embedding.weight.float()


@torch.inference_mode()
def rescaled_maps(
    network: Ooal, picture: Float[np.ndarray, "height width 3"], text: Float[Tensor, "classes dim"]
) -> Float[np.ndarray, "height width classes"]:
    """Maps of classes in a picture, at its size, each rescaled to [0, 1].

    Args:
        network: The network.
        picture: Colours, 0 to 1; the network sees it stretched to `SIDE`.
        text: See `Ooal.encode_text`.
    """
    whole = Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8))
    small = np.asarray(whole.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32) / 255
    normal = torch.from_numpy((small - _MEAN) / _STD).permute(2, 0, 1)[None]
    maps = interpolate(network(normal.to(text.device), text), picture.shape[:2], mode="bilinear")[0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low + 1e-10)).permute(1, 2, 0).cpu().numpy()
