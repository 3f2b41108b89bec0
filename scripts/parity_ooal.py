"""Compares OOAL with what the published code has computed, from the file of weights to the maps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from parity_numbers import Row, difference, passes, reading, saved, weights_of
from torch import Tensor

from divff_nerfstudio.evaluation.baselines.ooal.network import Ooal
from divff_nerfstudio.evaluation.baselines.ooal.text import TokenRows, prompt_ids
from divff_nerfstudio.evaluation.baselines.ooal.weights import load_ooal

TOLERANCE, TOLERANCE_MAP = 3e-5, 3e-6
"""Largest difference of features, and of maps."""
MAPS = ("map_lowres", "pred")
IMAGES = {"in/image": "out_image", "in/image_native": "out_image_native", "in/image_rect": "out_image_rect"}


@dataclass
class OoalParityConfig:
    """Checks OOAL against numbers of the published code; fails where they differ."""

    npz: tyro.conf.Positional[Path]
    """File of numbers, such as ooal_tiny.npz: weights, inputs, intermediate and final outputs."""

    def main(self) -> bool:
        """Prints the largest difference of each output.

        Returns:
            Whether all lie within their tolerances.
        """
        return passes(f"OOAL, {self.npz.name}", compare(self.npz))


def compare(npz: Path) -> list[Row]:
    """Loads the weights through the package's own loader, computes everything, and compares.

    Args:
        npz: File of numbers.

    Returns:
        For each output its name, the largest absolute difference, and the largest that is allowed.

    Raises:
        DivffError: If the file is none of this kind.
    """
    with reading(npz, "OOAL") as data:
        config = json.loads(str(data["config_json"]))
        heads = config["dino"]["num_heads"], config["clip"]["transformer_heads"]
        names = [str(name) for name in data["in/class_names"]]
        ids, rows = (torch.from_numpy(data[f"tok/embedding_{part}"]) for part in ("ids", "rows"))
        table = torch.zeros(config["clip"]["vocab_size"], rows.shape[1]).index_copy(0, ids.long(), rows)
        images = {inside: torch.from_numpy(data[inside]) for inside in IMAGES if inside in data}
        prompts = torch.from_numpy(data["tok/prompt_ids"])
    with saved({"iter": 0, "model_state_dict": weights_of(data)}) as path:
        network = load_ooal(path, *heads)
    learner = network.prompt_learner
    from_file = TokenRows(npz.name, names, learner, lambda: table)
    own_ids = prompt_ids(names, network.shape.context, network.shape.learned)
    backwards = from_file(names[::-1])[0].flip(0)  # the file's order is not the order that is asked for
    placed = network.prompt_learner(table[own_ids]) - network.prompt_learner(backwards)
    results = [
        ("tokenizer/prompt_ids", float((own_ids != prompts).sum()), 0.0),
        ("tokenizer/embedded", float(placed.abs().max()), 0.0),
    ]
    found: dict[str, Tensor] = {}
    for inside, image in images.items():
        outputs = computed(network, image, *from_file(names))
        found |= {f"{IMAGES[inside]}/{name}": value for name, value in outputs.items()}
    for name in sorted(entry for entry in data if entry.startswith("out_")):
        allowed = TOLERANCE_MAP if name.endswith(MAPS) else TOLERANCE
        results.append((name, difference(found, name, data[name]), allowed))
    return results


@torch.inference_mode()
def computed(network: Ooal, images: Tensor, tokens: Tensor, ends: Tensor) -> dict[str, Tensor]:
    """Intermediate and final outputs by the names that they have in files of numbers."""
    found: dict[str, Tensor] = {}

    def keep(module: Any, name: str) -> Any:
        return module.register_forward_hook(lambda _, inputs, output: found.__setitem__(name, output))

    def keep_input(module: Any, name: str) -> Any:
        return module.register_forward_pre_hook(lambda _, inputs: found.__setitem__(name, inputs[0]))

    def keep_tokens(_: Any, inputs: Any, output: Any) -> None:
        for number, (patches, cls) in enumerate(output):
            found[f"dino_patch_{number}"], found[f"dino_cls_{number}"] = patches, cls

    def keep_attention(number: int) -> Any:
        def hook(_: Any, inputs: Any, output: Any) -> None:
            attended, scores, gate = output
            found[f"dec{number}_attnout"], found[f"dec{number}_affmask"] = attended, gate
            found[f"dec{number}_attn"] = scores.mean(1)

        return hook

    layers: Any = network.seg_decoder["decoder"]
    handles = [
        keep_input(network.dino_model.blocks[0], "dino_tokens_in"),
        network.dino_model.register_forward_hook(keep_tokens),
        keep_input(network.embedder, "dense_merged"),
        keep(network.embedder, "dense_embedded"),
        keep(network.lln_norm_1, "dense"),
        keep_input(network.aff_text_encoder, "prompts"),
        keep(network.aff_text_encoder, "text_encoded"),
        keep(network.lln_norm_2, "text_in"),
        keep(network.linear_cls, "cls_token"),
        *(keep(norm, f"lln_{number}") for number, norm in enumerate(network.lln_norm)),
        *(keep(layer, f"dec{number}_text") for number, layer in enumerate(layers["layers"])),
        *(
            layer.multihead_attn.register_forward_hook(keep_attention(number))
            for number, layer in enumerate(layers["layers"])
        ),
    ]
    text = network.encode_text(tokens, ends)
    found["map_lowres"] = network.maps(images, text)
    found["pred"] = network(images, text)
    for handle in handles:
        handle.remove()
    return found
