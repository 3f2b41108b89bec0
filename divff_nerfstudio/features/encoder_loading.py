"""Where encoders come from: any model that open_clip knows, or a folder with one.

An encoder is named in one of these ways:

* ``demo``: the small encoder that comes with this package (`demo_encoder/`); it knows the demo's world only;
* ``MODEL/TAG``, such as ``ViT-B-16/laion2b_s34b_b88k``: a model of open_clip and the tag of its weights;
* ``MODEL/FILE``, such as ``ViT-B-16//data/open_clip_pytorch_model.bin``: a model of open_clip and a file of weights;
* a folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``, as open_clip itself writes it. It may
  add ``clip_tower.safetensors``, a second image tower for clips of the video, which reads the pictures of a clip side
  by side in one ("clip_tower" in the JSON is its vision_cfg), ``bpe_merges.txt.gz``, its vocabulary, and in the JSON
  "names", what it has learned to tell apart, if that is little.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.encoders import Encoder
from divff_nerfstudio.features.hub_cache import how_to_go_on
from divff_nerfstudio.features.pretrained import EncoderError, cached_file, unreachable_hub
from divff_nerfstudio.features.text_towers import (
    TOKENIZER,
    built_here,
    is_here,
    require_plain,
    text_of,
    tokenizer_from_here,
)
from divff_nerfstudio.schema import Number, Positive, Record, Words, read_json

DEMO_ENCODER = Path(__file__).parent / "demo_encoder"
CONFIG, WEIGHTS, CLIP_WEIGHTS, MERGES = (
    "open_clip_config.json",
    "open_clip_model.safetensors",
    "clip_tower.safetensors",
    "bpe_merges.txt.gz",
)
_MAX_SIDE, _MAX_LAYERS, _MAX_MERGES = 2**20, 256, 2**26
"""Larger widths, deeper networks and longer vocabularies (bytes) are no encoder's."""


class _Pictures(Record):
    """How colours are brought to what an encoder has learned with."""

    mean: tuple[Number, Number, Number] | None = None
    std: tuple[Positive, Positive, Positive] | None = None


class _Description(Record):
    """What is read of an encoder's ``open_clip_config.json``."""

    model_cfg: dict[str, Any]
    preprocess_cfg: _Pictures = _Pictures()
    clip_tower: dict[str, Any] | None = None
    clip_length: Annotated[int, Field(ge=1, le=256)] = 4
    names: Annotated[tuple[Words, ...], Field(max_length=1000)] = ()


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

    description = read_json(
        folder / CONFIG, _Description, "an encoder's description", "copy its folder anew", EncoderError
    )
    pictures, shape = description.preprocess_cfg, description.model_cfg
    try:
        require_plain([shape, description.clip_tower], folder)
        _check_sizes([shape, description.clip_tower])
        text = built_here(shape["text_cfg"], folder)
        custom = shape.get("custom_text", False) or "hf_model_name" in text
        arguments = {key: value for key, value in shape.items() if key != "custom_text"}
        arguments |= {"vision_cfg": _without_weights(shape["vision_cfg"]), "text_cfg": text}
        built = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        weights = _weights(folder / WEIGHTS)
        if not custom:  # what transformers or timm build is of their own sizes
            with torch.device("meta"):
                _check_room(built(**arguments), weights)
        model = built(**arguments)
        model.load_state_dict(weights)
        clip_tower = None
        if description.clip_tower is not None:
            clip_tower = open_clip.CLIP(**{**arguments, "vision_cfg": _without_weights(description.clip_tower)}).visual
            clip_tower.load_state_dict(_weights(folder / CLIP_WEIGHTS))
        if "hf_tokenizer_name" in text:
            if (folder / TOKENIZER).exists():
                what = "a description of a tokenizer"
                found = read_json(folder / TOKENIZER, dict[str, Any], what, "copy its folder anew", EncoderError)
                require_plain(found, folder)
            tokenizer: Any = tokenizer_from_here(f"local-dir:{folder}", text)
        else:
            vocabulary: dict[str, Any] = {}
            if (folder / MERGES).is_file():
                _check_merges(folder / MERGES)
                vocabulary = {"bpe_path": str(folder / MERGES)}
            tokenizer = open_clip.SimpleTokenizer(context_length=text.get("context_length", 77), **vocabulary)
            if vocabulary and tokenizer.vocab_size != text.get("vocab_size"):
                raise ValueError(f"{MERGES} is of {tokenizer.vocab_size} tokens, and vocab_size another")
    except DivffError:
        raise
    except Exception as error:  # whatever open_clip raises for a description that makes no sense
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise EncoderError(f"The encoder in {folder} cannot be built ({reason}): copy its folder anew.") from error
    mean, std = pictures.mean or open_clip.OPENAI_DATASET_MEAN, pictures.std or open_clip.OPENAI_DATASET_STD
    return Encoder(name, model, tokenizer, mean, std, clip_tower, description.clip_length, description.names)


def _weights(path: Path) -> dict[str, Tensor]:
    """Weights of a file, in single precision.

    Raises:
        EncoderError: If it is missing, damaged, or has weights that are not finite.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise EncoderError(f"{path} is missing or no ordinary file: copy the encoder's folder anew.")
    try:
        stored = load_file(path)
    except Exception as error:  # safetensors has errors of its own
        raise EncoderError(f"{path} is truncated or damaged ({error}): copy it anew.") from None
    found = {key: value.float() for key, value in stored.items()}
    if not all(bool(value.isfinite().all()) for value in found.values()):
        raise EncoderError(f"{path} has weights that are not finite: copy it anew.")
    if not any(value.is_floating_point() for value in stored.values()):
        raise EncoderError(f"{path} has whole numbers in place of weights: give weights that are not quantised.")
    return found


def _numbers(config: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a description, each with its key."""
    if isinstance(config, dict):
        for inner, value in config.items():
            yield from _numbers(value, inner)
    elif isinstance(config, list):
        for value in config:
            yield from _numbers(value, key)
    elif isinstance(config, (int, float)):
        yield key, config


def _check_sizes(config: Any) -> None:
    """Raises ValueError for sizes of a network that would never be built."""
    for key, value in _numbers(config):
        if abs(value) > (_MAX_LAYERS if key == "layers" else _MAX_SIDE):
            raise ValueError(f"{key} is {value}")


def _check_room(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raises ValueError where a network, of which only the shapes are known, is larger than its weights."""
    wanted, there = (sum(value.numel() for value in state.values()) for state in (model.state_dict(), weights))
    if wanted > 2 * there:
        raise ValueError(f"it has {wanted} parameters, and its file of weights {there}")


def _check_merges(path: Path) -> None:
    """Raises ValueError where a packed vocabulary unpacks to more than any has."""
    with gzip.open(path) as file:
        if len(file.read(_MAX_MERGES + 1)) > _MAX_MERGES:
            raise ValueError(f"{path.name} is longer than any vocabulary")


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
        first = how_to_go_on(_repository(architecture, weights), error)
        raise EncoderError(
            f"The weights of {name} cannot be had ({reason}): {first}fetch {_where(architecture, weights)} where there "
            f"is a network, put it anywhere on this machine, and give --encoder {architecture}/PATH_OF_THE_FILE."
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


def _repository(architecture: str, tag: str | None) -> str | None:
    """Name of the hub's repository that weights are in; None: they are elsewhere."""
    if architecture.startswith("hf-hub:"):
        return architecture.removeprefix("hf-hub:").partition("@")[0]
    hub = _known(architecture, tag).get("hf_hub")
    return hub.rpartition("/")[0] if hub else None


def _where(architecture: str, tag: str | None) -> str:
    """Where a person finds weights."""
    known = _known(architecture, tag)
    if hub := known.get("hf_hub"):
        return (
            f"open_clip_model.safetensors or open_clip_pytorch_model.bin from https://huggingface.co/{hub.strip('/')}"
        )
    return known.get("url") or f"its files from https://huggingface.co/{architecture.removeprefix('hf-hub:')}"
