"""The interface of everything whose features can be distilled, and the sources that there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.store import FeatureKind, FrameFeatures, StoreHeader
from divff_nerfstudio.plugins import plugin_class

SOURCES: dict[str, str] = {
    "segments": "divff_nerfstudio.features.open_clip_source:SegmentSource",
    "clip-tiles": "divff_nerfstudio.features.open_clip_source:TileSource",
    "patches": "divff_nerfstudio.features.open_clip_source:PatchSource",
    "dinov2": "divff_nerfstudio.features.patches:DinoSource",
    "egovideo": "divff_nerfstudio.features.egovideo.source:EgoVideoSource",
    "xclip": "divff_nerfstudio.features.xclip:XClipSource",
    "hotspot": "divff_nerfstudio.features.hotspots:HotspotSource",
    "hints": "divff_nerfstudio.features.hints.source:HintSource",
    "oracle-objects": "divff_nerfstudio.features.oracle:OracleObjects",
    "oracle-actions": "divff_nerfstudio.features.oracle:OracleActions",
}
"""Where the class of each registered source is; it is imported when it is asked for."""
DEFAULT_SOURCES: dict[str, str] = {"image": "segments", "video": "egovideo", "regulariser": "dinov2"}
"""The source of each kind of features."""
DEMO_SOURCES: dict[str, str] = {"image": "segments", "video": "clip-tiles", "regulariser": "patches"}
"""The same with the demo encoder, which needs no other weights."""


class FeatureSource(ABC):
    """Turns the frames of a scene into features of one kind.

    A subclass sets the class attributes, loads its model into `model`, `fingerprint` and `dimension` when it is made,
    and implements `settings` and `extract`; the rest has defaults. Where pictures can be prepared while others are
    encoded, derive from `PreparedSource`.

    Args:
        pictures: Pictures of the scene.
        encoder: Model that looks at them, as the user named it.
        device: Device to compute on.
        config: Options of the source; None: its defaults.
    """

    kind: ClassVar[FeatureKind]
    """What the features are used as; also the name of the store's folder."""
    name: ClassVar[str]
    """Name of the source in the store's header."""
    negatives: ClassVar[tuple[str, ...]] = ()
    """Phrases that queries are held against; none where no words can be asked."""
    shared_index: ClassVar[bool] = False
    """Whether all frames have the same index, as on a fixed grid."""
    frames_at_once: ClassVar[int] = 1
    """Frames that `encode` gets in one go on a GPU; on a CPU it gets one."""
    config_class: ClassVar[type | None] = None
    """Dataclass of the source's options, where ``divff extract --own`` shall be able to set them; registered sources
    without one may have a field of `ExtractConfig` in its place."""

    model: str
    """What the model is called in the store's header."""
    fingerprint: str
    """SHA-256 of the model's weights."""
    dimension: int
    """Length of a stored feature."""
    row_length: int | None = None
    """Length of the rows that `extract` gives, where `reduce` turns them into stored features at the end."""
    decoder: str | None = None
    """File, put in the store's folder by `reduce`, of the autoencoder that turns stored features into embeddings."""
    note: Callable[[str], None] = staticmethod(lambda text: None)
    """Shows a few words beside the progress; for what takes long within `reduce`."""

    def __init__(self, pictures: Pictures, encoder: str, device: torch.device, config: Any = None):
        self.pictures = pictures
        self.encoder_name = encoder
        self.device = device
        self.config = config

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All options that change the features, as plain data for the header."""

    @abstractmethod
    def extract(self, frame: int) -> FrameFeatures:
        """Features of the frame with this index in the scene."""

    def prepare(self, frame: int) -> Any:
        """What `encode` needs of a frame; several threads call it ahead. Unless a subclass says so, the frame alone."""
        return frame

    def encode(self, prepared: Sequence[Any]) -> Iterable[FrameFeatures]:
        """Features of several frames, each as `prepare` has left it, in order."""
        return (self.extract(frame) for frame in prepared)

    def reduce(self, rows: np.ndarray, folder: Path) -> Iterable[np.ndarray]:
        """Stored features, chunk by chunk, of all rows; called only where `row_length` is set.

        Args:
            rows: What `extract` gave for all frames, (R, row_length), memory-mapped.
            folder: The unfinished store's folder; what is put there stays beside the features. After an interruption
                `reduce` is called again and finds what it has left there.
        """
        raise NotImplementedError(f"{type(self).__name__} has a row_length, but no reduction.")

    def text_encoder(self) -> dict[str, Any] | None:
        """Entry of the header by which `text.text_encoder` builds the text encoder; None where there is none."""
        return None

    def header(self) -> StoreHeader:
        """Header of the store that the features go to."""
        scene = self.pictures.scene
        return StoreHeader(
            kind=self.kind,
            source=self.name,
            model=self.model,
            fingerprint=self.fingerprint,
            dimension=self.dimension,
            frame_ids=scene.frame_ids.tolist(),
            image_size=[scene.height, scene.width],
            settings=self.settings(),
            text_encoder=self.text_encoder(),
            negatives=list(self.negatives),
            shared_index=self.shared_index,
            decoder=self.decoder,
            pictures=self.looks_at(),
        )

    def looks_at(self) -> str:
        """SHA-256 of the pictures that the features are of."""
        return self.pictures.frames_digest


class PreparedSource(FeatureSource):
    """A source whose work is in two parts: what pictures alone need, and what the model does with several frames.

    A subclass implements `prepare`, which reads, cuts and resizes pictures and may be called by several threads, and
    `encode`, which gets what that gives of up to `frames_at_once` frames.
    """

    @abstractmethod
    def prepare(self, frame: int) -> Any:
        """What `encode` needs of the frame with this index in the scene."""

    @abstractmethod
    def encode(self, prepared: Sequence[Any]) -> Iterable[FrameFeatures]:
        """Features of several frames, each as `prepare` has left it, in order."""

    def extract(self, frame: int) -> FrameFeatures:
        """Features of one frame."""
        return next(iter(self.encode([self.prepare(frame)])))


def source_name(name: str, encoder: str) -> str:
    """Name of the source that is meant: a kind means the kind's default source.

    Args:
        name: A kind, a registered source, or ``module:Class``.
        encoder: The encoder's name.
    """
    return (DEMO_SOURCES if encoder == "demo" else DEFAULT_SOURCES).get(name, name)


def source_class(name: str) -> type[FeatureSource]:
    """The class of a registered source, or of any other, given as ``module:Class``.

    Raises:
        DivffError: If there is none of that name, or it is no source.
    """
    found = plugin_class(name, FeatureSource, "feature source", SOURCES, DEFAULT_SOURCES)
    kinds = get_args(FeatureKind)
    if getattr(found, "kind", None) not in kinds or not isinstance(getattr(found, "name", None), str):
        raise DivffError(
            f"{name} lacks a name or a kind: set `name` to a text and `kind` to one of {', '.join(kinds)}."
        )
    return found
