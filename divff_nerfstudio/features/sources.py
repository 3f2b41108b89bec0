"""The interface of everything whose features can be distilled, and the sources that there are."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.store import FrameFeatures, StoreHeader
from divff_nerfstudio.files import DivffError

FeatureKind = Literal["image", "video", "regulariser"]

SOURCES: dict[str, str] = {
    "image": "divff_nerfstudio.features.open_clip_source:SegmentSource",
    "video": "divff_nerfstudio.features.open_clip_source:TileSource",
    "regulariser": "divff_nerfstudio.features.open_clip_source:PatchSource",
    "oracle-objects": "divff_nerfstudio.features.oracle:OracleObjects",
    "oracle-actions": "divff_nerfstudio.features.oracle:OracleActions",
}
"""Where the class of each registered source is; it is imported when it is asked for."""


class FeatureSource(ABC):
    """Turns the frames of a scene into features of one kind.

    A subclass sets the class attributes, loads its model into `model`, `fingerprint` and `dimension` when it is made,
    and implements `settings` and `extract`; the rest has defaults.

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

    model: str
    """What the model is called in the store's header."""
    fingerprint: str
    """SHA-256 of the model's weights."""
    dimension: int
    """Length of a stored feature."""
    row_length: int | None = None
    """Length of the rows that `extract` gives, where `reduce` turns them into stored features at the end."""

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

    def reduce(self, rows: np.ndarray) -> Iterable[np.ndarray]:
        """Stored features, chunk by chunk, of all rows (R, row_length); called only where `row_length` is set."""
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
        )


def source_class(name: str) -> type[FeatureSource]:
    """The class of a registered source, or of any other, given as ``module:Class``.

    Raises:
        DivffError: If there is none of that name.
    """
    module, _, attribute = SOURCES.get(name, name).partition(":")
    known = ", ".join(SOURCES)
    if not attribute:
        raise DivffError(f"There is no feature source {name}: choose from {known}, or give your own as module:Class.")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DivffError(f"The feature source {name} cannot be imported ({error}): choose from {known}.") from None
    if not (isinstance(found, type) and issubclass(found, FeatureSource)):
        raise DivffError(f"{name} is no FeatureSource: derive it from divff_nerfstudio.features.sources:FeatureSource.")
    return found
