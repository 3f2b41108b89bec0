"""Where encoders come from: any model that open_clip knows, or a folder with one.

An encoder is named in one of these ways:

* ``demo``: the small encoder that comes with this package (`demo_encoder/`); it knows the demo's world only;
* ``MODEL/TAG``, such as ``ViT-B-16/laion2b_s34b_b88k``: a model of open_clip and the tag of its weights;
* ``MODEL/FILE``, such as ``ViT-B-16//data/open_clip_pytorch_model.bin``: a model of open_clip and a file of weights;
* a folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``, as open_clip itself writes it. It may
  add ``clip_tower.safetensors``, a second image tower for clips of the video, which reads the pictures of a clip side
  by side in one ("clip_tower" in the JSON is its vision_cfg), and ``bpe_merges.txt.gz``, its vocabulary.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from divff_nerfstudio.features.encoders import Encoder
from divff_nerfstudio.features.pretrained import EncoderError, cached_file, unreachable_hub
from divff_nerfstudio.features.text_towers import (
    TOKENIZER,
    built_here,
    is_here,
    require_plain,
    text_of,
    tokenizer_from_here,
)

DEMO_ENCODER = Path(__file__).parent / "demo_encoder"
CONFIG, WEIGHTS, CLIP_WEIGHTS, MERGES = (
    "open_clip_config.json",
    "open_clip_model.safetensors",
    "clip_tower.safetensors",
    "bpe_merges.txt.gz",
)


@lru_cache(maxsize=1)
def load_encoder(name: str, device: torch.device | str = "cpu") -> Encoder:
    """Loads an encoder; the last one is remembered.

    Args:
        name: One of the ways above.
        device: Device to compute on.

    Raises:
        EncoderError: If it is not to be had, or its files do not fit one another.
    """
    folder = DEMO_ENCODER if name == "demo" else Path(name)
    if (folder / CONFIG).is_file():
        encoder = _from_folder(name, folder)
    elif name == "demo" or folder.is_dir():
        raise EncoderError(f"{folder / CONFIG} is missing: give a folder as open_clip writes it, or MODEL/TAG.")
    else:
        encoder = _from_open_clip(name)
    return encoder.to(torch.device(device))


def _from_folder(name: str, folder: Path) -> Encoder:
    import open_clip
    from safetensors.torch import load_file

    def weights(file: str) -> dict[str, Tensor]:
        try:
            return {key: value.float() for key, value in load_file(folder / file).items()}
        except FileNotFoundError:
            raise EncoderError(f"{folder / file} is missing: copy the encoder's folder anew.") from None
        except Exception as error:  # safetensors has errors of its own
            raise EncoderError(f"{folder / file} is truncated or damaged ({error}): copy it anew.") from None

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        require_plain(config, folder)
        shape, preprocess = config["model_cfg"], config.get("preprocess_cfg", {})
        text = built_here(shape["text_cfg"], folder)
        custom = shape.get("custom_text", False) or "hf_model_name" in text
        arguments = {key: value for key, value in shape.items() if key != "custom_text"}
        arguments |= {"vision_cfg": _without_weights(shape["vision_cfg"]), "text_cfg": text}
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**arguments)
        model.load_state_dict(weights(WEIGHTS))
        clip_tower = None
        if "clip_tower" in config:
            clip_tower = open_clip.CLIP(**{**arguments, "vision_cfg": _without_weights(config["clip_tower"])}).visual
            clip_tower.load_state_dict(weights(CLIP_WEIGHTS))
        if "hf_tokenizer_name" in text:
            if (folder / TOKENIZER).is_file():
                require_plain(json.loads((folder / TOKENIZER).read_text(encoding="utf-8")), folder)
            tokenizer: Any = tokenizer_from_here(f"local-dir:{folder}", text)
        else:
            vocabulary: dict[str, Any] = {"bpe_path": str(folder / MERGES)} if (folder / MERGES).is_file() else {}
            tokenizer = open_clip.SimpleTokenizer(context_length=text.get("context_length", 77), **vocabulary)
    except EncoderError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(f"The encoder in {folder} cannot be built ({reason}): copy its folder anew.") from error
    mean = preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN)
    std = preprocess.get("std", open_clip.OPENAI_DATASET_STD)
    return Encoder(name, model, tokenizer, mean, std, clip_tower, config.get("clip_length", 4))


def _without_weights(vision: dict[str, Any]) -> dict[str, Any]:
    """An image tower's description by which timm does not fetch weights that are replaced at once."""
    return {**vision, "timm_model_pretrained": False} if "timm_model_name" in vision else vision


def _from_open_clip(name: str) -> Encoder:
    import open_clip

    if name.startswith("hf-hub:"):
        architecture, weights = name, None
    else:
        architecture, _, weights = name.partition("/")
        if architecture not in open_clip.list_models():
            raise EncoderError(
                f"There is no encoder {name}: give demo, MODEL/TAG such as ViT-B-16/laion2b_s34b_b88k, MODEL/FILE with "
                "a file of weights, or a folder; `open_clip.list_pretrained()` names models and tags."
            )
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if weights not in tags and not Path(weights).is_file():
            raise EncoderError(
                f"{weights or 'Nothing'} is neither a file nor a tag of weights of {architecture}: give one of "
                f"{', '.join(tags) or 'your own files'}."
            )
    own = weights is not None and not _known(architecture, weights)
    text_here = is_here(text_of(architecture))
    on_hub = weights is None or _known(architecture, weights).get("hf_hub") or not text_here
    absent = unreachable_hub() if on_hub else None
    try:
        if name.startswith("hf-hub:"):
            _look_at_hub(name, absent is not None)
        if weights is not None and own and (text_here or absent is not None):
            model, tokenizer = _from_file(architecture, weights)
        elif absent is None:
            model = open_clip.create_model(architecture, pretrained=weights)
            tokenizer = open_clip.get_tokenizer(architecture)
        else:
            model, tokenizer = _from_cache(architecture, weights)
    except EncoderError:
        raise
    except Exception as error:  # whatever a download, a hub or an unpickler may raise
        reason = absent or " ".join(str(error).split())[:200] or type(error).__name__
        if weights and Path(weights).is_file():
            raise EncoderError(f"{weights} does not fit {architecture} ({reason}): give its own weights.") from error
        raise EncoderError(
            f"The weights of {name} cannot be had ({reason}): fetch {_where(architecture, weights)} where there is a "
            f"network, put it anywhere on this machine, and give --encoder {architecture}/PATH_OF_THE_FILE."
        ) from error
    visual: Any = model.visual
    mean = getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
    std = getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
    return Encoder(name, model, tokenizer, mean, std)


def _from_cache(architecture: str, tag: str | None) -> tuple[nn.Module, Any]:
    """A model and its tokenizer of what the hub's cache holds, without a word to the hub.

    Raises:
        FileNotFoundError: If it holds too little.
    """
    if tag is None:  # a repository of its own, which lies in the cache as open_clip writes a folder
        config = cached_file(architecture.removeprefix("hf-hub:").partition("@")[0], CONFIG)
        if config is None:
            raise FileNotFoundError(CONFIG)
        folder, text = config.parent, json.loads(config.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
        return _from_file(f"local-dir:{folder}", None, text, folder)
    known = _known(architecture, tag)
    repository, _, file = known["hf_hub"].rpartition("/")
    names = (file, str(Path(file).with_suffix(".safetensors"))) if file else (WEIGHTS, "open_clip_pytorch_model.bin")
    weights = cached_file(repository, *names)
    if weights is None:
        raise FileNotFoundError(names[0])
    return _from_file(architecture, str(weights), force_preprocess_cfg=known)


def _from_file(
    source: str, weights: str | None, text: dict[str, Any] | None = None, folder: Path | None = None, **options: Any
) -> tuple[nn.Module, Any]:
    """A model and its tokenizer of files on this machine.

    Args:
        source: The model as open_clip names it.
        weights: The file of its weights; None: they lie in its folder.
        text: Its "text_cfg"; None: what open_clip knows.
        folder: The model's own folder, if it has one.
        options: For open_clip.
    """
    import open_clip

    text = text_of(source) if text is None else text
    if text.get("hf_model_name"):
        options["text_cfg"] = built_here(text, folder)
    if weights is None:
        options["require_pretrained"] = True
    else:
        options["pretrained"] = weights
    return open_clip.create_model(source, **options), tokenizer_from_here(source, text)


def _look_at_hub(name: str, offline: bool) -> None:
    """Looks at what a repository of the hub, which anybody may fill, says of its model before open_clip follows it.

    What cannot be looked at is not followed, unless the repository has no such file, or, offline, nobody can fetch it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository = name.removeprefix("hf-hub:").partition("@")[0]
    for file in (CONFIG, TOKENIZER):
        try:
            path = Path(hf_hub_download(repository, file, local_files_only=offline))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not offline:
                raise
            continue
        require_plain(json.loads(path.read_text(encoding="utf-8")), path)


def _known(architecture: str, tag: str | None) -> dict[str, Any]:
    """What open_clip knows of the weights of a tag; nothing of a file."""
    from open_clip.pretrained import get_pretrained_cfg

    return get_pretrained_cfg(architecture, tag) if tag else {}


def _where(architecture: str, tag: str | None) -> str:
    """Where a person finds weights."""
    known = _known(architecture, tag)
    if hub := known.get("hf_hub"):
        return (
            f"open_clip_model.safetensors or open_clip_pytorch_model.bin from https://huggingface.co/{hub.strip('/')}"
        )
    return known.get("url") or f"its files from https://huggingface.co/{architecture.removeprefix('hf-hub:')}"
