"""Features of scenes whose objects are known, by fixed random codes: they measure the field, not an encoder.

Where a renderer knows what each pixel shows, a pixel's feature is the code of its instance's name, and a phrase's
embedding is the code of the phrase: a random direction that the phrase's letters alone decide. What a field scores with
these features is what is lost between the features and the answer; no picture is ever looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from divff_nerfstudio.data.annotations import GroundTruth, LabelledMasks, affordance_annotations, ground_truth
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.sources import FeatureSource
from divff_nerfstudio.features.store import FeatureKind, FrameFeatures
from divff_nerfstudio.features.text import PhraseEncoder

ORACLE = "oracle"
"""What stands in place of a model's name, so that no result is taken for an encoder's."""
DIMENSION = 64
_ARTICLES = ("a ", "an ", "the ")


def phrase_code(phrase: str, dimension: int = DIMENSION) -> Float[np.ndarray, "dimension"]:
    """The code of a phrase: a random direction drawn from the phrase's own SHA-256, the same on every machine."""
    seed = int.from_bytes(hashlib.sha256(canonical(phrase).encode()).digest()[:8], "little")
    code = np.random.Generator(np.random.PCG64(seed)).standard_normal(dimension)
    return (code / np.linalg.norm(code)).astype(np.float32)


def canonical(phrase: str) -> str:
    """A phrase in small letters, with single spaces and without an article in front."""
    phrase = " ".join(phrase.lower().split())
    return next((phrase[len(article) :] for article in _ARTICLES if phrase.startswith(article)), phrase)


class OraclePhrases(PhraseEncoder):
    """Codes of phrases; the entry's "aliases" say which phrases mean the same instance."""

    def __init__(self, entry: dict[str, Any]):
        self.name, self.fingerprint, self.dimension = ORACLE, str(entry.get("fingerprint", "")), entry["dimension"]
        self._aliases: dict[str, str] = entry.get("aliases", {})

    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "phrases dim"]:
        """Codes of phrases, of unit length."""
        names = (canonical(phrase) for phrase in phrases)
        return torch.from_numpy(
            np.stack([phrase_code(self._aliases.get(name, name), self.dimension) for name in names])
        )


class OracleSource(FeatureSource):
    """Each pixel gets the code of what the ground truth says that it shows.

    Raises:
        DivffError: If the scene has no ground truth.
    """

    model, dimension = ORACLE, DIMENSION

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        scene = self.pictures.scene
        truth = ground_truth(scene)
        if truth is None:
            raise DivffError(
                f"{scene.root / 'ground_truth'} is missing: the source {self.name} knows what a renderer wrote there; "
                "extract features of a filmed scene with an encoder."
            )
        self.truth: GroundTruth = truth
        self._codes = self.instance_codes()
        self.fingerprint = hashlib.sha256(b"".join(code.tobytes() for code in self._codes.values())).hexdigest()

    def instance_codes(self) -> Mapping[int, Float[np.ndarray, "dimension"]]:
        """Code of each instance, by id; an instance that is not in it has no feature."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The length of the codes."""
        return {"dimension": self.dimension, "instances": len(self._codes)}

    def extract(self, frame: int) -> FrameFeatures:
        """Codes of a frame, at its own resolution."""
        instances = self.truth.instances(frame)
        ids = np.unique(instances)
        table = np.stack([self._codes[int(i)] for i in ids])
        return FrameFeatures(np.searchsorted(ids, instances).astype(np.uint16), table)

    def text_encoder(self) -> dict[str, Any]:
        """The encoder of the same codes."""
        return {
            "family": "oracle",
            "dimension": self.dimension,
            "fingerprint": self.fingerprint,
            "aliases": self.aliases(),
        }

    def aliases(self) -> dict[str, str]:
        """Canonical phrases that are asked as another one: nothing, unless a subclass says so."""
        return {}


class OracleObjects(OracleSource):
    """What each pixel shows: codes of the instances' names, which their descriptions mean as well."""

    kind: ClassVar[FeatureKind] = "image"
    name: ClassVar[str] = "oracle-objects"

    def instance_codes(self) -> Mapping[int, Float[np.ndarray, "dimension"]]:
        """Code of each instance's name."""
        return {entry["id"]: phrase_code(entry["name"]) for entry in self.truth.instance_table}

    def aliases(self) -> dict[str, str]:
        """Descriptions that mean one name only."""
        meant: dict[str, set[str]] = {}
        for entry in self.truth.instance_table:
            meant.setdefault(canonical(entry.get("description", entry["name"])), set()).add(canonical(entry["name"]))
        return {text: next(iter(names)) for text, names in meant.items() if len(names) == 1 and text not in names}


class OracleActions(OracleSource):
    """What can be done at each pixel: the sum of the codes of the actions that its instance affords.

    Which those are, the affordance annotations say: an instance affords an action if more than half of its pixels in
    annotated frames are marked with it.
    """

    kind: ClassVar[FeatureKind] = "video"
    name: ClassVar[str] = "oracle-actions"

    def instance_codes(self) -> Mapping[int, Float[np.ndarray, "dimension"]]:
        """Code of each instance: its actions' codes added, of unit length; that of its name if it affords nothing."""
        scene = self.pictures.scene
        annotations = affordance_annotations(scene)
        if annotations is None:
            raise DivffError(
                f"{scene.root} has no affordance annotations, which the source {self.name} needs: leave it out."
            )
        affords = _afforded(self.truth, annotations)
        codes = {}
        for entry in self.truth.instance_table:
            actions = [name for name, ids in zip(annotations.names, affords, strict=True) if entry["id"] in ids]
            summed = np.sum([phrase_code(phrase) for phrase in actions or [f"nothing with {entry['name']}"]], axis=0)
            codes[entry["id"]] = (summed / np.linalg.norm(summed)).astype(np.float32)
        return codes


def _afforded(truth: GroundTruth, annotations: LabelledMasks) -> list[set[int]]:
    """Ids of the instances that afford each annotated action."""
    count = 1 + max(entry["id"] for entry in truth.instance_table)
    marked, shown = np.zeros((len(annotations.names), count)), np.zeros(count)
    for index, masks in annotations.masks.items():
        instances = truth.instances(index)
        shown += np.bincount(instances.ravel(), minlength=count)
        marked += [np.bincount(instances[mask], minlength=count) for mask in np.moveaxis(masks, -1, 0)]
    return [set(np.flatnonzero(row > shown / 2).tolist()) for row in marked]
