"""What a feature store holds and how it was made: the names of its files, and ``header.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.schema import Record, Words, read_json

FeatureKind = Literal["image", "video", "regulariser", "hotspot", "hints"]
"""What features are used as; also the name of their store's folder."""
FORMAT = 1
HEADER, TABLE, OFFSETS, INDEX = "header.json", "table.npy", "offsets.npy", "index.npy"
NO_FEATURE = 65535
"""Row in the index where there is no feature."""
HINTS = "hints"
"""Kind of the store that holds no features but what is said of pixels, see `features.hints`."""
IMPORTED = "imported"
"""Source of the stores of an imported run, which say what its heads speak and hold no targets for them."""
_Size = Annotated[int, Field(ge=1, le=2**16)]


class FeatureStoreError(DivffError):
    """A feature store is missing, damaged, in use, or was made with other settings."""


class _TextEncoder(Record, extra="allow"):
    """How to build a text encoder; a family of somebody else's has entries of its own."""

    family: str = "open_clip"
    fingerprint: str | None = None
    normalise: bool = True


class _OpenClip(_TextEncoder):
    encoder: Words


class _XClip(_TextEncoder):
    weights: Words


class _EgoVideo(_TextEncoder):
    weights: Words | None = None
    vocabulary: Words | None = None
    frames: _Size | None = None
    ignore_unknown: bool = False


class _Oracle(_TextEncoder):
    dimension: _Size
    aliases: dict[str, str] = Field(default_factory=dict)


_FAMILIES = ("open_clip", "xclip", "egovideo", "oracle")


def _family(entry: Any) -> str:
    """The family of an entry that is read, or of one that is written."""
    family = entry.get("family", "open_clip") if isinstance(entry, dict) else getattr(entry, "family", "")
    return family if family in _FAMILIES else "other"


_AnyTextEncoder = Annotated[
    Annotated[_OpenClip, Tag("open_clip")]
    | Annotated[_XClip, Tag("xclip")]
    | Annotated[_EgoVideo, Tag("egovideo")]
    | Annotated[_Oracle, Tag("oracle")]
    | Annotated[_TextEncoder, Tag("other")],
    Discriminator(_family),
]


class HeaderRecord(Record):
    """``header.json`` of a feature store; its entries are told in `StoreHeader`."""

    kind: FeatureKind
    source: str
    model: str
    fingerprint: str
    dimension: _Size
    frame_ids: Annotated[list[Annotated[int, Field(ge=0, lt=10**12)]], Field(min_length=1, max_length=10**7)]
    image_size: Annotated[list[_Size], Field(min_length=2, max_length=2)]
    settings: dict[str, Any] = Field(default_factory=dict)
    text_encoder: _AnyTextEncoder | None = None
    negatives: Annotated[list[Words], Field(max_length=1000)] = Field(default_factory=list)
    shared_index: bool = False
    decoder: Annotated[str, Field(pattern=r"^[^/\\\x00]{1,200}$")] | None = None
    pictures: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    format: int


@dataclass(frozen=True)
class StoreHeader:
    """What a feature store holds and how it was made; headers without differences mean equal features."""

    kind: str
    """Kind of features: "image", "video", "regulariser" or "hotspot"; or "hints"."""
    source: str
    """Registered name of the feature source."""
    model: str
    """Model of the source, as given by the user."""
    fingerprint: str
    """SHA-256 of the model's weights."""
    dimension: int
    """Length D of a feature."""
    frame_ids: list[int]
    """Ids of the scene's frames, in the order of the store."""
    image_size: list[int]
    """Height and width of the scene's frames in pixels."""
    settings: dict[str, Any] = field(default_factory=dict)
    """All options of the source that change its features."""
    text_encoder: dict[str, Any] | None = None
    """How to build the text encoder that speaks the features' language, or None where there is none."""
    negatives: list[str] = field(default_factory=list)
    """Phrases that a query is compared with."""
    shared_index: bool = False
    """Whether one index serves all frames."""
    decoder: str | None = None
    """File in the store's folder with the autoencoder whose codes the features are; None: they are embeddings."""
    pictures: str | None = None
    """SHA-256 of the pictures that the features are of; None, of an earlier version: nobody knows."""
    format: int = FORMAT
    """Version of the store's layout."""

    def differences(self, other: StoreHeader) -> list[str]:
        """Names every entry in which `other` differs, as ``name: this -> other``."""
        # As JSON reads them back: a tuple is written as a list.
        mine, others = (_flat(json.loads(json.dumps(asdict(header)))) for header in (self, other))
        found = []
        for name in sorted(mine.keys() | others.keys()):
            if mine.get(name) == others.get(name) or _only_moved(name, mine, others):
                continue
            if name == "frame_ids":
                found.append(f"frame_ids: {len(self.frame_ids)} frames -> {len(other.frame_ids)} frames, or other ids")
            elif name == "pictures":
                if self.pictures is not None and other.pictures is not None:
                    found.append("pictures: other ones than these")
            else:
                found.append(f"{name}: {mine.get(name, 'absent')} -> {others.get(name, 'absent')}")
        return found

    @property
    def is_of_unit_length(self) -> bool:
        """Whether its features must be: those of all registered sources are; what others give is theirs to know."""
        from divff_nerfstudio.features.sources import SOURCES

        return self.source in SOURCES and self.kind != HINTS

    def write(self, path: Path) -> None:
        """Writes the header as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> StoreHeader:
        """Reads a header.

        Raises:
            FeatureStoreError: If it is missing, damaged, or of another version.
        """
        remedy = "remove its folder and run `divff extract` again"
        if not path.exists():
            raise FeatureStoreError(f"There is no feature store at {path.parent}: run `divff extract`.")
        found = read_json(path, HeaderRecord, "the header of a feature store", remedy, FeatureStoreError)
        if found.format != FORMAT:
            raise FeatureStoreError(f"{path} is not a feature store of version {FORMAT}: {remedy}.")
        if len(set(found.frame_ids)) < len(found.frame_ids):
            raise FeatureStoreError(f"{path} names a frame twice in frame_ids: {remedy}.")
        return cls(**found.model_dump(exclude_unset=True))


_PLACES = {"model", "weights", "vocabulary", "encoder"}
"""Entries that say where a model lies, or by what name; a fingerprint beside them says which one it is."""


def _only_moved(name: str, mine: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether two headers' entry tells of the same model at two places."""
    group, _, entry = name.rpartition(".")
    known = f"{group}.fingerprint" if group else "fingerprint"
    return entry in _PLACES and bool(mine.get(known)) and mine.get(known) == others.get(known)


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    flat = {}
    for name, value in content.items():
        flat.update(_flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat
