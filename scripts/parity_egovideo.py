"""Compares EgoVideo's towers with what the published code has computed, from the file of weights to the embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from parity_numbers import Row, difference, passes, reading, saved, weights_of
from torch import Tensor, nn
from torch.nn.functional import normalize

from divff_nerfstudio.features.egovideo.tokenizer import WordPieces
from divff_nerfstudio.features.egovideo.video import Gelu
from divff_nerfstudio.features.egovideo.weights import EgoVideoWeights

TOLERANCE, TOLERANCE_UNIT = 3e-5, 5e-6
"""Largest difference of tokens, and of embeddings of unit length."""
PRECISION = 6
"""Where the published computation itself differs by more between single and double precision, so many times that."""
NOT_COMPUTED = ("unused_clip_final",)
"""Outputs of the file that belong to the training alone."""
CPU = torch.device("cpu")


@dataclass
class EgoVideoParityConfig:
    """Checks the video and text towers of EgoVideo against numbers of the published code; fails where they differ."""

    npz: tyro.conf.Positional[Path]
    """File of numbers, such as egovideo_tiny.npz: weights, inputs, intermediate and final outputs."""

    def main(self) -> bool:
        """Prints the largest difference of each output.

        Returns:
            Whether all lie within their tolerances.
        """
        return passes(f"EgoVideo, {self.npz.name}", compare(self.npz))


def compare(npz: Path) -> list[Row]:
    """Loads the weights through the package's own loader, computes everything, and compares.

    Args:
        npz: File of numbers.

    Returns:
        For each output its name, the largest absolute difference, and the largest that is allowed.

    Raises:
        DivffError: If the file is none of this kind.
    """
    with reading(npz, "EgoVideo") as data:
        config = json.loads(str(data["config_json"]))
        vision, text = config["vision"], config["text"]
        video, ids, mask = (torch.from_numpy(data[f"in/{name}"]) for name in ("video", "input_ids", "attention_mask"))
        words, phrases = [str(word) for word in data["tok/vocab"]], [str(phrase) for phrase in data["tok/texts"]]
    with saved({f"module.{name}": tensor for name, tensor in weights_of(data).items()}) as path:
        heads = (vision["num_heads"], vision["attn_pool_num_heads"], text["num_attention_heads"])
        weights = EgoVideoWeights(path, vision["num_frames"], heads)
        found: dict[str, Tensor] = {}
        gelus: tuple[Gelu, ...] = ("tanh", "erf")
        for gelu in gelus:
            outputs = _video(weights, gelu, video) | _text(weights, ids, mask)
            found |= {f"out_{gelu}/{name}": value for name, value in outputs.items()}

    own_ids, own_mask = WordPieces(words, ids.shape[1])(phrases)
    rows = [
        ("tokenizer/input_ids", float((own_ids != ids).sum()), 0.0),
        ("tokenizer/attention_mask", float((own_mask != mask).sum()), 0.0),
        ("sizes", float(weights.shape.image_size != vision["img_size"] or weights.shape.depth != vision["depth"]), 0.0),
    ]
    precision = dict(zip(map(str, data["tolerance/names"]), data["tolerance/max_abs_f32_minus_f64"], strict=True))
    for name in sorted(entry for entry in data if entry.startswith("out_")):
        if name.endswith(NOT_COMPUTED):
            continue
        minimum = TOLERANCE_UNIT if name.endswith("_embed") and "patch" not in name else TOLERANCE
        allowed = max(minimum, PRECISION * float(precision.get(name, 0.0)))
        rows.append((name, difference(found, name, data[name]), allowed))
    return rows


@torch.inference_mode()
def _video(weights: EgoVideoWeights, gelu: Gelu, video: Tensor) -> dict[str, Tensor]:
    encoder = weights.video(gelu, CPU, torch.float32)
    tower = encoder.visual
    first: Any = tower.blocks[0]
    parts: dict[str, nn.Module] = {
        "patch_embed": tower.patch_embed,
        "block0_norm1": first.norm1,
        "block0_qkv": first.attn.qkv,
        "block0_q_normed": first.attn.q_norm,
        "block0_k_normed": first.attn.k_norm,
        "block0_attn": first.attn,
        "block0_mlp": first.mlp,
        "pool_q_normed": tower.clip_projector.norm1_q,
        **{f"block_{number}": block for number, block in enumerate(tower.blocks)},
    }
    found: dict[str, Tensor] = {}
    first.register_forward_pre_hook(lambda _, inputs: found.__setitem__("tokens_in", inputs[0]))
    for name, part in parts.items():
        part.register_forward_hook(_keep(found, name))
    tower.register_forward_hook(lambda *call: found.update(zip(("tokens_out", "pooled"), call[-1], strict=True)))
    found["video_projected"] = encoder(video)
    found["patch_embed"] = found["patch_embed"].unflatten(1, (weights.shape.frames // weights.shape.tubelet, -1))
    found["video_embed"] = normalize(found["video_projected"], dim=-1)
    return found


@torch.inference_mode()
def _text(weights: EgoVideoWeights, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    encoder = weights.text(CPU, torch.float32)
    found: dict[str, Tensor] = {}
    encoder.textual.embeddings.register_forward_hook(_keep(found, "text_embeddings"))
    for number, layer in enumerate(encoder.textual.encoder.layer):
        layer.register_forward_hook(_keep(found, f"text_layer_{number}"))
    found["text_projected"] = encoder(ids, mask)
    found["text_embed"] = normalize(found["text_projected"], dim=-1)
    return found


def _keep(found: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        found[name] = output[0] if isinstance(output, tuple) else output  # layers of transformers give tuples

    return hook
