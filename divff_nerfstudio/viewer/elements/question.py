"""What is asked, and how."""

from __future__ import annotations

from typing import Any

from divff_nerfstudio.viewer.context import FEATURES
from divff_nerfstudio.viewer.elements import Follower
from divff_nerfstudio.viewer.parts import Parts

NO_PRESET = "pick a question ..."


def add_question(panel: Parts) -> Any:
    """The box that questions are typed into; it follows questions that come from elsewhere."""
    box = panel.gui.add_text(
        "Question",
        panel.context.query.config.text,
        disabled=panel.mute,
        hint='What to look for; several phrases are separated by ";".',
    )
    follower = Follower(box, lambda text: panel.asking.change(text=text))
    panel.asking.suggested.connect(lambda text, _: follower.follow(lambda: text))
    return box


def add_presets(panel: Parts) -> Any:
    """The questions that fit the scene."""
    box = panel.gui.add_dropdown("Presets", [NO_PRESET], disabled=panel.mute, hint="Questions that fit this scene.")

    def offer(labels: list[str]) -> None:
        box.options = [NO_PRESET, *labels]

    def choose(label: str) -> None:
        if label != NO_PRESET:
            box.value = NO_PRESET
            preset = panel.asking.presets[label]
            panel.asking.suggest(preset.text, preset.features)

    box.on_update(lambda _: choose(box.value))
    panel.asking.offered.connect(offer)
    return box


def add_features(panel: Parts) -> Any:
    """The kind of features that answers."""
    kinds = {FEATURES[kind]: kind for kind in panel.context.kinds} or {"none": "image"}
    box = panel.gui.add_dropdown(
        "Features",
        list(kinds),
        initial_value=next((text for text, kind in kinds.items() if kind == panel.context.query.config.features), None),
        disabled=panel.mute,
        hint="Image features know what things are, video features what is done with them.",
    )
    follower = Follower(box, lambda text: panel.asking.change(features=kinds[text]))

    def follow(_: str, kind: str | None) -> None:
        if kind is not None:
            follower.follow(lambda: FEATURES[kind])

    panel.asking.suggested.connect(follow)
    return box


def add_negatives(panel: Parts) -> Any:
    """What questions are held against."""
    query = panel.context.query

    def usual(kind: str) -> str:
        return "; ".join(query.negatives(kind))

    box = panel.gui.add_text(
        "Negatives",
        usual(query.config.features),
        disabled=panel.mute,
        hint='What questions are held against, separated by ";". Empty: the usual ones.',
    )
    follower = Follower(box, panel.asking.change_negatives)
    panel.asking.switched.connect(lambda kind: follower.follow(lambda: usual(kind)))
    return box


def add_threshold(panel: Parts) -> Any:
    """The relevancy from which on something counts as seen."""
    value, hint = panel.context.query.config.threshold, "Relevancy from which on it counts as seen."
    slider = panel.gui.add_slider("Threshold", 0.0, 1.0, 0.01, value, disabled=panel.mute, hint=hint)
    slider.on_update(lambda _: panel.asking.change(threshold=float(slider.value)))
    return slider


def add_strength(panel: Parts) -> Any:
    """How strongly the answer colours the picture."""
    value, hint = panel.context.query.config.strength, "Share of the colours in the answer."
    slider = panel.gui.add_slider("Overlay strength", 0.0, 1.0, 0.05, value, disabled=panel.mute, hint=hint)
    slider.on_update(lambda _: panel.asking.change(strength=float(slider.value)))
    return slider


def add_outline(panel: Parts) -> Any:
    """Whether the answer is outlined."""
    value, hint = bool(panel.context.query.config.contour), "Where the threshold is reached."
    box = panel.gui.add_checkbox("Outline", value, disabled=panel.mute, hint=hint)
    box.on_update(lambda _: panel.asking.change(contour=bool(box.value)))
    return box
