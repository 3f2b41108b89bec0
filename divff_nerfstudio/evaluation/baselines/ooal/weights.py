"""OOAL's published weights: found, checked as a whole, and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from divff_nerfstudio.cache_dirs import weights_dir
from divff_nerfstudio.checkpoints import read_checkpoint, require_shapes, weights_of
from divff_nerfstudio.evaluation.baselines.ooal.network import Ooal, unused_shapes
from divff_nerfstudio.evaluation.baselines.ooal.shape import OoalShape, infer_shape
from divff_nerfstudio.features.pretrained import EncoderError

FILE = "seen_best"
DOWNLOADED = "ooal.pth"
"""What `divff download` calls the file."""
URL = "https://drive.google.com/file/d/1pJAiwPsnjn3QhmUj24XMDXL9bFsyJedZ"
"""Where people fetch the weights that were trained on the seen split of AGD20K."""
SEEN = [
    "beat", "boxing", "brush_with", "carry", "catch", "cut", "cut_with", "drag", "drink_with", "eat", "hit",
    "hold", "jump", "kick", "lie_on", "lift", "look_out", "open", "pack", "peel", "pick_up", "pour", "push",
    "ride", "sip", "sit_on", "stick", "stir", "swing", "take_photo", "talk_on", "text_on", "throw", "type_on",
    "wash", "write",
]  # fmt: skip
"""Classes of AGD20K's seen split, in the order of the weights."""
_ONLY_SEEN = (
    *("beat", "boxing", "brush_with", "drag", "lift", "look_out", "pack", "stir"),
    *("talk_on", "text_on", "write"),
)
UNSEEN = [name for name in SEEN if name not in _ONLY_SEEN]
"""Classes that its unseen split trains on."""
_CONTENT = "model_state_dict"


def find_weights(path: Path | None, scene: Path | None = None) -> Path:
    """The file of weights.

    Args:
        path: As the user gave it; None: ``ooal.pth`` in the folder ``weights`` beside the scene or beside its parent,
            where `divff download` puts it, else ``seen_best`` (with any ending) in `weights_dir`.
        scene: Folder of the scene.

    Raises:
        EncoderError: If there is none; the message says what to fetch and where to put it.
    """
    usual = weights_dir() / FILE
    if path is None:
        above = [] if scene is None else [folder / "weights" / DOWNLOADED for folder in scene.resolve().parents[:2]]
        near = [place for place in above if place.is_file()]
        path = next(iter([*near, *sorted(usual.parent.glob(f"{FILE}*"))]), usual)
    if not path.is_file():
        raise EncoderError(
            f"{path} is missing: fetch OOAL's {FILE} ({URL}, by hand), put it there, or give its place with "
            "--models.ooal, or leave the baseline ooal out."
        )
    return path


def load_ooal(path: Path, heads: int = OoalShape.heads, text_heads: int = OoalShape.text_heads) -> Ooal:
    """Loads the network, all its sizes read off its weights.

    Args:
        path: The published file: a dictionary with "model_state_dict", or the state dict itself.
        heads: Attention heads of DINOv2.
        text_heads: Attention heads of the text transformer.

    Returns:
        The network, for inference, in single precision, on the CPU.

    Raises:
        CheckpointError: If the file is missing or damaged, or is not OOAL's: every weight that is missing, unknown or
            of another shape is named.
    """
    content: Any = read_checkpoint(path)
    if isinstance(content, Mapping) and _CONTENT in content:
        content = content[_CONTENT]
    tensors = weights_of(path, content)
    shape = infer_shape(tensors, heads, text_heads)
    with torch.device("meta"):
        network = Ooal(shape)
    unused = unused_shapes(shape)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} | unused
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    require_shapes(path, f"state dict of OOAL ({URL})", found, expected)
    if shape.side**2 + 1 != shape.positions or shape.width % heads or shape.text_width % text_heads:
        raise EncoderError(f"{path} has positions or widths that no network of OOAL has: fetch its {FILE} ({URL}).")
    network.load_state_dict({name: tensor for name, tensor in tensors.items() if name not in unused}, assign=True)
    return network.eval().requires_grad_(False)


def trained_names(count: int) -> list[str]:
    """Classes of published weights by how many they are.

    Raises:
        EncoderError: If there are no such weights.
    """
    for names in (SEEN, UNSEEN):
        if len(names) == count:
            return names
    raise EncoderError(
        f"Weights of OOAL for {count} classes are none of the published ones ({len(SEEN)} or {len(UNSEEN)}): give "
        f"{FILE} ({URL})."
    )
