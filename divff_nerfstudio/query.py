"""Questions in words: phrases become embeddings, embeddings and rendered features a relevancy map and its picture."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from nerfstudio.configs.base_config import InstantiateConfig
from nerfstudio.utils.colormaps import apply_float_colormap
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape
from torch import Tensor

from divff_nerfstudio.data.annotations import clean_query
from divff_nerfstudio.files import DivffError

if TYPE_CHECKING:
    from divff_nerfstudio.features.store import FeatureStore

FeatureKind = Literal["image", "video"]
Encode = Callable[[Sequence[str]], Float[Tensor, "phrases dim"]]
Decode = Callable[[Float[Tensor, "rows code"]], Float[Tensor, "rows dim"]]

PUBLISHED_NEGATIVES: Mapping[str, tuple[str, ...]] = {
    "image": ("object", "things", "stuff", "hands"),
    "video": ("general task", "undistic movement", "unclear action", "background"),
}
"""The phrases that a query is held against in DIV-FF, spelt as there."""
OVERLAY_OFFSET: Mapping[str, float] = {"image": 0.5, "video": 0.51}
"""Relevancy from which on the overlay's colour scale counts (DIV-FF)."""
MAX_PHRASES = 16
"""More phrases than this in one query are refused: each costs a map of the image's size."""
_REMEMBERED = 512
_DECODED = 32768


class QueryError(DivffError):
    """A query cannot be answered; the message is one sentence with the remedy."""


def relevancy(
    features: Float[Tensor, "*bs dim"],
    positives: Float[Tensor, "phrases dim"],
    negatives: Float[Tensor, "others dim"],
    temperature: float = 10.0,
) -> Float[Tensor, "*bs phrases"]:
    """Relevancy of features to phrases: LERF (Kerr et al. 2023), equation 4.

    For each negative phrase, a softmax over `temperature` times the similarities to the query and to that negative; the
    least of the query's probabilities. The least belongs to the negative that is most similar, so one sigmoid of the
    difference to it is the same number.

    Args:
        features: Features, of unit length.
        positives: Embeddings of the phrases asked for.
        negatives: Embeddings of the phrases to hold them against, at least one.
        temperature: Factor of the similarities.

    Returns:
        Relevancies in [0, 1]; 0.5 where query and nearest negative are equally similar.
    """
    strongest = (features @ negatives.T).amax(dim=-1, keepdim=True)
    return torch.sigmoid(temperature * (features @ positives.T - strongest))


def overlay(
    rgb: Float[Tensor, "*bs 3"],
    relevance: Float[Tensor, "*bs 1"],
    offset: float = 0.5,
    threshold: float = 0.53,
    strength: float = 1.0,
) -> Float[Tensor, "*bs 3"]:
    """Shows a relevancy map as the published pictures do (DIV-FF).

    What exceeds `offset` is divided by its largest value, its upper half stretched over the colours of "turbo"; where
    relevancy is under `threshold`, the image shows instead, lightened half way to white.

    Args:
        rgb: The image, in [0, 1].
        relevance: Relevancies in [0, 1].
        offset: Relevancy at which the colour scale starts.
        threshold: Relevancy under which the image is shown.
        strength: Share of the overlay in the picture; the rest is the image itself.

    Returns:
        The picture, in [0, 1].
    """
    above = (relevance - offset).clamp(0, 1)
    share = above / above.max().clamp_min(1e-6)
    colours = apply_float_colormap((2 * share - 1).clamp(0, 1), colormap="turbo").to(rgb)
    lightened = 0.5 + 0.5 * rgb
    picture = torch.where(relevance < threshold, lightened, colours)
    return torch.lerp(rgb, picture, strength).clamp(0, 1)


@dataclass
class QueryConfig(InstantiateConfig):
    """What is asked of the scene. Renderers that cannot be told a query (``ns-render``) take it from here."""

    _target: type = field(default_factory=lambda: Query)
    """target class to instantiate"""
    text: str = ""
    """Phrase to look for; several are separated by ";" and the most relevant counts. Empty: nothing is asked."""
    features: FeatureKind = "image"
    """Which features answer: image-language ("what is it") or video-language ("what is done with it")."""
    negatives_image: tuple[str, ...] = ()
    """Phrases that image queries are held against. Empty: those of the scene's features, else DIV-FF's four."""
    negatives_video: tuple[str, ...] = ()
    """Phrases that video queries are held against. Empty: those of the scene's features, else DIV-FF's four."""
    prefix_video: str = ""
    """Put before every phrase asked of the video features ("#C C " as in EgoVideo's captions); negatives stay bare."""
    unit_video_text: bool = True
    """Whether embeddings of phrases asked of the video features have unit length; DIV-FF leaves theirs as they are."""
    object_features: FeatureKind = "image"
    """Which features are asked for annotated objects in evaluation; DIV-FF's code asks the video features."""
    temperature: float = 10.0
    """Factor of the similarities in the relevancy."""
    threshold: float = 0.53
    """Relevancy under which the overlay shows the lightened image."""
    strength: float = 1.0
    """Share of the overlay in the picture, 0 to 1."""


class Query:
    """Answers the query of its configuration about rendered features.

    The configuration may be replaced at any time (`ask`); a render that is under way keeps the one that it started
    with. Text encoders are asked at the first phrase only, and their answers remembered.

    Args:
        config: The query to begin with. It is not encoded yet.
        encoders: Text encoder of each kind of features that there is.
        negatives: Phrases that the features' own source wants queries held against.
        decoders: What turns rendered features of a kind into embeddings, where they are codes.

    Raises:
        QueryError: If the query has more than `MAX_PHRASES` phrases.
    """

    def __init__(
        self,
        config: QueryConfig,
        encoders: Mapping[str, Encode],
        negatives: Mapping[str, Sequence[str]] | None = None,
        decoders: Mapping[str, Decode] | None = None,
    ):
        split_phrases(config.text)
        self.config = config
        self.encoders, self.decoders = dict(encoders), dict(decoders or {})
        self.own_negatives = {kind: tuple(phrases) for kind, phrases in (negatives or {}).items()}
        self.error: str | None = None
        self._remembered: OrderedDict[tuple[str, str], Tensor] = OrderedDict()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of features that can be asked."""
        return tuple(self.encoders)

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases asked for; none: nothing is asked."""
        return split_phrases(self.config.text)

    @property
    def active(self) -> bool:
        """Whether something is asked that the scene's features can answer."""
        return bool(self.phrases) and self.config.features in self.encoders

    def negatives(self, kind: str, config: QueryConfig | None = None) -> tuple[str, ...]:
        """The phrases that queries of one kind are held against."""
        config = config or self.config
        chosen = config.negatives_video if kind == "video" else config.negatives_image
        return tuple(chosen) or self.own_negatives.get(kind) or PUBLISHED_NEGATIVES[kind]

    def ask(self, **changes: Any) -> None:
        """Replaces parts of the configuration, after everything needed to answer has been found to work.

        Args:
            changes: Fields of `QueryConfig` and their new values.

        Raises:
            QueryError: If the new query cannot be answered; the old one then stays.
        """
        config = replace(self.config, **changes)
        if phrases := split_phrases(config.text):
            self._embeddings(config, config.features, phrases)
        self.config, self.error = config, None

    def check(self, kind: str, phrases: Sequence[str]) -> None:
        """Finds out whether phrases can be asked of one kind of features, and remembers their embeddings.

        Raises:
            QueryError: If there are no such features, or their text encoder does not work.
        """
        self._embeddings(self.config, kind, phrases)

    def relevancies(
        self, features: Float[Tensor, "*bs dim"], kind: str, phrases: Sequence[str]
    ) -> Float[Tensor, "*bs phrases"]:
        """Relevancy of features to each of several phrases, whatever is being asked in `config.text`.

        Args:
            features: Rendered features of that kind, of unit length.
            kind: "image" or "video".
            phrases: What to look for.

        Returns:
            Relevancies in [0, 1], a channel per phrase.

        Raises:
            QueryError: If there are no such features, or their text encoder does not work.
        """
        return self._relevancies(self.config, features, kind, phrases)

    @torch.no_grad()
    def answer(
        self, outputs: Mapping[str, Float[Tensor, "height width channels"]], features: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The outputs that the query adds to a rendered view.

        Nothing is raised, since it is called amid rendering: where the query cannot be answered, `error` says why (and
        the console, once), and no output is added.

        Args:
            outputs: Outputs of the view; "rgb" lies under the overlay.
            features: Rendered features of the view, (height, width, dim) for each kind, of unit length.

        Returns:
            "relevancy", (height, width, 1) in [0, 1], the largest over the phrases, and "relevancy_overlay", (height,
            width, 3), the same over the image; nothing if nothing is asked.
        """
        config = self.config
        phrases = split_phrases(config.text)
        if not phrases or config.features not in features:
            return {}
        try:
            found = self._relevancies(config, features[config.features], config.features, phrases)
        except QueryError as error:
            if self.error != str(error):
                CONSOLE.print(f"[bold yellow]{escape(str(error))}")
            self.error = str(error)
            return {}
        strongest = found.amax(dim=-1, keepdim=True)
        picture = overlay(outputs["rgb"], strongest, OVERLAY_OFFSET[config.features], config.threshold, config.strength)
        return {"relevancy": strongest, "relevancy_overlay": picture}

    def _relevancies(self, config: QueryConfig, features: Tensor, kind: str, phrases: Sequence[str]) -> Tensor:
        positives, negatives = self._embeddings(config, kind, phrases)
        positives, negatives = positives.to(features), negatives.to(features)
        decode = self.decoders.get(kind)
        if decode is None:
            if positives.shape[-1] != features.shape[-1]:
                raise QueryError(
                    f"The text encoder of the {kind} features gives {positives.shape[-1]} values where they have "
                    f"{features.shape[-1]}: name the one that they were made with."
                )
            return relevancy(features, positives, negatives, config.temperature)
        parts = features.flatten(0, -2).split(_DECODED)
        found = [relevancy(decode(part), positives, negatives, config.temperature) for part in parts]
        return torch.cat(found).view(*features.shape[:-1], len(positives))

    def _embeddings(self, config: QueryConfig, kind: str, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings of the phrases and of the negatives."""
        if kind not in self.encoders:
            there = " and ".join(self.encoders) or "no"
            raise QueryError(f"This run has {there} features, not {kind} features: extract them with `divff extract`.")
        prefix = config.prefix_video if kind == "video" else ""
        asked = [prefix + clean_query(phrase) if kind == "video" else phrase for phrase in phrases]
        return self._encode(kind, asked), self._encode(kind, self.negatives(kind, config))

    def _encode(self, kind: str, phrases: Sequence[str]) -> Tensor:
        missing = [phrase for phrase in dict.fromkeys(phrases) if (kind, phrase) not in self._remembered]
        known = {phrase: self._remembered[kind, phrase] for phrase in phrases if phrase not in missing}
        if missing:
            try:
                fresh = self.encoders[kind](missing).detach().cpu()
            except Exception as error:  # whatever a foreign encoder or its download may raise
                reason = " ".join(str(error).split()) or type(error).__name__
                raise QueryError(f"The text encoder of the {kind} features cannot be used: {reason}") from error
            known.update(zip(missing, fresh, strict=True))
            self._remembered.update({(kind, phrase): known[phrase] for phrase in missing})
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return torch.stack([known[phrase] for phrase in phrases])


def build_query(
    config: QueryConfig, stores: Mapping[str, FeatureStore], make_encoder: Callable[[dict[str, Any]], Encode]
) -> Query:
    """Makes the query of a scene's feature stores.

    Args:
        config: The query to begin with.
        stores: The scene's stores by kind; those without a text encoder (the regulariser's) cannot be asked.
        make_encoder: Builds a text encoder from the entry of a store's header; called at the first phrase, not before.
    """
    asked = {kind: store.header for kind, store in stores.items() if store.header.text_encoder is not None}
    unlike = {} if config.unit_video_text else {"video": {"normalise": False}}
    return Query(
        config,
        {
            kind: _LazyEncoder(make_encoder, {**(header.text_encoder or {}), **unlike.get(kind, {})})
            for kind, header in asked.items()
        },
        {kind: header.negatives for kind, header in asked.items()},
        {kind: stores[kind].decode for kind, header in asked.items() if header.decoder is not None},
    )


class _LazyEncoder:
    """A text encoder that is built when the first phrase comes, so that headless training never loads one."""

    def __init__(self, make_encoder: Callable[[dict[str, Any]], Encode], settings: dict[str, Any]):
        self._make_encoder, self._settings = make_encoder, settings
        self._encoder: Encode | None = None

    def __call__(self, phrases: Sequence[str]) -> Float[Tensor, "phrases dim"]:
        if self._encoder is None:
            self._encoder = self._make_encoder(self._settings)
        return self._encoder(phrases)


def split_phrases(text: str) -> tuple[str, ...]:
    """The phrases of a query: separated by ";", stripped of white space, empty and repeated ones dropped.

    Raises:
        QueryError: If there are more than `MAX_PHRASES`.
    """
    phrases = tuple(dict.fromkeys(" ".join(part.split()) for part in text.split(";")))
    phrases = tuple(phrase for phrase in phrases if phrase)
    if len(phrases) > MAX_PHRASES:
        raise QueryError(f"A query has at most {MAX_PHRASES} phrases, not {len(phrases)}: ask for fewer at a time.")
    return phrases
