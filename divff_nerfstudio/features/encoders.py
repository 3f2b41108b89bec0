"""OpenCLIP models as encoders of pictures, clips and words."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from divff_nerfstudio.features.pretrained import EncoderError, weights_fingerprint

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
        names: What it has learned to tell apart; none: more than can be told.
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
        names: Sequence[str] = (),
    ):
        self.name, self.names = name, tuple(names)
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

    def stretched_whole(
        self, picture: UInt8[np.ndarray, "_ _ 3"], scale: float = 1.0
    ) -> UInt8[Tensor, "1 3 height width"]:
        """A picture as `tokens` wants it.

        Args:
            picture: The picture.
            scale: Height that the tower sees, over its usual one.
        """
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
