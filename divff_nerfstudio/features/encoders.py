"""OpenCLIP models as encoders of pictures, clips and words: any model that open_clip knows, or a folder with one.

An encoder is named in one of these ways:

* ``demo``: the small encoder that comes with this package (`demo_encoder/`); it knows the demo's world only;
* ``MODEL/TAG``, such as ``ViT-B-16/laion2b_s34b_b88k``: a model of open_clip and the tag of its weights;
* ``MODEL/FILE``, such as ``ViT-B-16//data/open_clip_pytorch_model.bin``: a model of open_clip and a file of weights;
* a folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``, as open_clip itself writes it. It may
  add ``clip_tower.safetensors``, a second image tower for clips of the video, which reads the pictures of a clip side
  by side in one ("clip_tower" in the JSON is its vision_cfg), and ``bpe_merges.txt.gz``, its vocabulary.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from divff_nerfstudio.features.pretrained import EncoderError, cached_file, unreachable_hub, weights_fingerprint
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
_BATCH = {"cpu": 64, "cuda": 512}


class Encoder:
    """A contrastive model of open_clip with what belongs to it.

    Args:
        name: How the user named it.
        model: The model, with `visual` and `encode_text`.
        tokenizer: Turns phrases into tokens.
        mean: Mean that the model's colours (0 to 1) are normalised by.
        std: Standard deviation that they are normalised by.
        clip_tower: Image tower for mosaics of a clip's pictures, if the model has one.
        clip_length: Pictures in such a mosaic, a square number.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Int[Tensor, "phrases context"]],
        mean: Sequence[float],
        std: Sequence[float],
        clip_tower: nn.Module | None = None,
        clip_length: int = 4,
    ):
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.clip_tower = None if clip_tower is None else clip_tower.eval().requires_grad_(False)
        self.clip_length = clip_length
        self.fingerprint = weights_fingerprint(model, clip_tower)
        self._tokenizer = tokenizer
        self._mean, self._std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
        self.device = torch.device("cpu")
        self._together = False
        size = getattr(model.visual, "image_size", 224)
        self.input_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        """Height and width of the pictures that the model takes."""
        self.dimension = self.encode_text(["a"]).shape[-1]
        """Length of an embedding."""

    def to(self, device: torch.device) -> Encoder:
        """Moves the model; in half precision where the device is a GPU."""
        self.device, self._together = device, device.type == "cuda"
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.model.to(device=device, dtype=dtype)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        if self.clip_tower is not None:
            self.clip_tower.to(device=device, dtype=dtype)
        return self

    @torch.inference_mode()
    def encode_text(self, phrases: Sequence[str], normalise: bool = True) -> Float[Tensor, "phrases dim"]:
        """Embeddings of phrases."""
        tokens = self._tokenizer(list(phrases)).to(self.device)
        found = self.model.encode_text(tokens).float().cpu()  # pyright: ignore[reportCallIssue]
        return normalize(found, dim=-1) if normalise else found

    def encode_images(self, pictures: Iterable[UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "n dim"]:
        """Embeddings of unit length of pictures, each stretched to the model's input."""
        return self.encode_stretched([stretched(pictures, self.input_size)])[0]

    @torch.inference_mode()
    def encode_stretched(self, parts: Sequence[UInt8[Tensor, "_ 3 height width"]]) -> list[Float[Tensor, "_ dim"]]:
        """Embeddings of unit length of pictures that have the size of the model's input, part by part.

        On a CPU each part is encoded by itself, so that it gives the same to the last bit, whatever lies beside it.
        """
        return self._encode_parts(self.model.visual, parts)

    def encode_clips(self, clips: UInt8[np.ndarray, "n length height width 3"]) -> Float[Tensor, "n dim"]:
        """Embeddings of unit length of clips of pictures.

        With a tower for clips, of the pictures side by side; without, the mean of the pictures' embeddings.
        """
        return self.encode_stretched_clips([self.stretched_clips(clips)])[0]

    def stretched_clips(self, clips: UInt8[np.ndarray, "n length h w 3"]) -> UInt8[Tensor, "n length 3 height width"]:
        """Pictures of clips, each in the size that the model's input has for it.

        Raises:
            EncoderError: If the tower for clips takes clips of another length.
        """
        count, length = clips.shape[:2]
        size = self.input_size
        if self.clip_tower is not None:
            if length != self.clip_length:
                raise EncoderError(f"{self.name} takes clips of {self.clip_length} pictures, not {length}.")
            side = round(length**0.5)
            size = (size[0] // side, size[1] // side)
        return stretched(clips.reshape(-1, *clips.shape[2:]), size).unflatten(0, (count, length))

    @torch.inference_mode()
    def encode_stretched_clips(
        self, parts: Sequence[UInt8[Tensor, "_ length 3 height width"]]
    ) -> list[Float[Tensor, "_ dim"]]:
        """Embeddings of clips that `stretched_clips` gave, part by part, as `encode_stretched`."""
        if self.clip_tower is None:
            found = self._encode_parts(self.model.visual, [part.flatten(0, 1) for part in parts])
            means = (each.view(*part.shape[:2], -1).mean(1) for each, part in zip(found, parts, strict=True))
            return [normalize(mean, dim=-1) for mean in means]
        return self._encode_parts(self.clip_tower, [self._mosaics(part) for part in parts])

    def _mosaics(self, clips: UInt8[Tensor, "n length 3 h w"]) -> UInt8[Tensor, "n 3 height width"]:
        """The pictures of each clip side by side in one."""
        side = round(clips.shape[1] ** 0.5)
        return clips.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5).reshape(len(clips), 3, *self.input_size)

    def patch_tokens(
        self, picture: UInt8[np.ndarray, "_ _ 3"], scale: float = 1.0
    ) -> Float[Tensor, "rows columns width"]:
        """Tokens of the image tower over the whole of a picture; see `tokens`.

        Args:
            picture: The picture.
            scale: Height that the tower sees, over its usual one.
        """
        return self.tokens(self.stretched_whole(picture, scale))[0]

    def stretched_whole(
        self, picture: UInt8[np.ndarray, "_ _ 3"], scale: float = 1.0
    ) -> UInt8[Tensor, "1 3 height width"]:
        """A picture as `tokens` wants it; see `patch_tokens`."""
        from open_clip.modified_resnet import ModifiedResNet

        tower: Any = self.model.visual
        height, width = self.input_size
        if isinstance(tower, ModifiedResNet):
            height, width, _ = fitted_size(picture, 2 * scale * height, (32, 32))
        elif _stretches(tower):
            height, width, _ = fitted_size(picture, scale * height, tower.patch_size)
        return stretched([picture], (height, width))

    @torch.inference_mode()
    def tokens(self, pictures: UInt8[Tensor, "n 3 height width"]) -> Float[Tensor, "n rows columns width"]:
        """Tokens of the image tower over the whole of pictures.

        A vision transformer sees a picture in its own shape, its position embeddings stretched to it, and gives the
        tokens of its last layer. A residual network sees it in its own shape, too, but twice as large, and gives the
        last stage but one, a token every 16 pixels. Other towers see it stretched to their input.

        Args:
            pictures: Pictures that `stretched_whole` gave, all of one size.
        """
        from open_clip.modified_resnet import ModifiedResNet

        tower: Any = self.model.visual
        last = 1
        if isinstance(tower, ModifiedResNet):
            last = 2
        elif _stretches(tower):
            height, width = tower.patch_size
            tower = _with_positions(tower, (pictures.shape[2] // height, pictures.shape[3] // width))
        tokens = tower.forward_intermediates(
            self._normalised(pictures), indices=last, intermediates_only=True, normalize_intermediates=True
        )
        return tokens["image_intermediates"][0].permute(0, 2, 3, 1).float().cpu()

    def _encode_parts(
        self, tower: Any, parts: Sequence[UInt8[Tensor, "_ 3 height width"]]
    ) -> list[Float[Tensor, "_ dim"]]:
        if not self._together:
            return [self._encode(tower, part) for part in parts]
        return list(self._encode(tower, torch.cat(list(parts))).split([len(part) for part in parts]))

    def _encode(self, tower: Any, pictures: UInt8[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        if len(pictures) == 0:
            return torch.zeros(0, self.dimension)
        batches = pictures.split(_BATCH.get(self.device.type, 64))
        return normalize(torch.cat([tower(self._normalised(batch)).float() for batch in batches]).cpu(), dim=-1)

    def _normalised(self, pictures: UInt8[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 height width"]:
        """Pictures as the model takes them, normalised on its device: bytes are what is copied there."""
        scaled = (pictures.to(self.device).float() / 255 - self._mean) / self._std
        return scaled.to(next(self.model.parameters()).dtype)


def stretched(
    pictures: Iterable[UInt8[np.ndarray, "_ _ 3"]], size: tuple[int, int]
) -> UInt8[Tensor, "n 3 height width"]:
    """Pictures, each stretched to a height and width (bicubic)."""
    resized = [
        np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((size[1], size[0]), Image.Resampling.BICUBIC))
        for picture in pictures
    ]
    stacked = np.stack(resized) if resized else np.zeros((0, *size, 3), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def fitted_size(
    picture: UInt8[np.ndarray, "_ _ 3"], height: float, patch: tuple[int, int]
) -> tuple[int, int, tuple[int, int]]:
    """Height and width nearest to a picture's shape at a given height that are whole patches, and how many."""
    rows = max(1, round(height / patch[0]))
    columns = max(1, round(rows * patch[0] * picture.shape[1] / picture.shape[0] / patch[1]))
    return rows * patch[0], columns * patch[1], (rows, columns)


def _stretches(tower: Any) -> bool:
    """Whether a tower is a vision transformer, which sees pictures in their own shape."""
    return hasattr(tower, "positional_embedding") and hasattr(tower, "patch_size")


def _with_positions(tower: Any, grid: tuple[int, int]) -> Any:
    """The same tower with its position embeddings stretched to another grid of rows and columns."""
    from open_clip.model import resize_pos_embed

    state = {"visual.positional_embedding": tower.positional_embedding.float()}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=grid)))
    stretched = copy.copy(tower)
    stretched._parameters = dict(tower._parameters)
    positions = state["visual.positional_embedding"].to(tower.positional_embedding)
    stretched._parameters["positional_embedding"] = nn.Parameter(positions, requires_grad=False)
    return stretched


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
    """Looks at what a repository of the hub, which anybody may fill, says of its model before open_clip follows it."""
    from huggingface_hub import hf_hub_download

    repository = name.removeprefix("hf-hub:").partition("@")[0]
    for file in (CONFIG, TOKENIZER):
        try:
            path = Path(hf_hub_download(repository, file, local_files_only=offline))
        except Exception:
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
