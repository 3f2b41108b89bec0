"""Questions that the viewer offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from divff_nerfstudio.data.annotations import affordance_annotations, object_annotations
from divff_nerfstudio.data.scene import SceneFolder
from divff_nerfstudio.query import AskedKind


@dataclass(frozen=True)
class Preset:
    """A question that is offered."""

    text: str
    """What is asked."""
    features: AskedKind | None = None
    """Which features are asked; None: those that are selected."""

    @property
    def label(self) -> str:
        """How it is offered."""
        return f"{self.text} (action)" if self.features == "video" else self.text


def scene_presets(scene: SceneFolder, chosen: Sequence[str] = ()) -> list[Preset]:
    """The questions that a configuration has chosen, or else the names of what is annotated in the scene.

    Raises:
        SceneError: If the annotations are damaged.
    """
    if chosen:
        return [Preset(text) for text in chosen]
    objects, actions = object_annotations(scene), affordance_annotations(scene)
    found = [Preset(name, "image") for name in objects.names] if objects else []
    return found + ([Preset(name, "video") for name in actions.names] if actions else [])
