"""Questions in words: phrases become embeddings, embeddings and rendered features a relevancy map and its picture."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Optional

import torch
from jaxtyping import Bool, Float
from nerfstudio.configs.base_config import InstantiateConfig
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape
from torch import Tensor

from divff_nerfstudio.data.annotations import clean_query
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.text import WhenAsked
from divff_nerfstudio.overlays import OVERLAY_OFFSET, outlined, overlay, overlay_several
from divff_nerfstudio.relevancy import EXAMPLE_NAME, PUBLISHED_NEGATIVES, Example, relevancy
from divff_nerfstudio.schema import Positive, Share, Text, Words

if TYPE_CHECKING:
    from divff_nerfstudio.features.store import FeatureStore

AskedKind = Literal["image", "video"]
Encode = Callable[[Sequence[str]], Float[Tensor, "phrases dim"]]
Decode = Callable[[Float[Tensor, "rows code"]], Float[Tensor, "rows dim"]]

ANSWERS = ("relevancy", "relevancy_overlay")
"""Outputs that answers add to a view."""
MAX_PHRASES = 16
"""More phrases than this in one query are refused: each costs a map of the image's size."""
MAX_NEGATIVES = 1000
"""Most phrases that a file may want queries held against: each is encoded."""
_REMEMBERED = 4096
_PICTURE_FIELDS = {"threshold", "strength", "contour"}
_DECODED = 32768


class QueryError(DivffError):
    """A query cannot be answered; the message is one sentence with the remedy."""


@dataclass
class QueryConfig(InstantiateConfig):
    """What is asked of the scene. Renderers that cannot be told a query (``ns-render``) take it from here."""

    _target: type = field(default_factory=lambda: Query)
    """target class to instantiate"""
    text: Text = ""
    """Phrase to look for; several are separated by ";" and the most relevant counts. Empty: nothing is asked."""
    features: AskedKind = "image"
    """Which features answer: image-language ("what is it") or video-language ("what is done with it")."""
    negatives_image: tuple[Words, ...] = ()
    """Phrases that image queries are held against. Empty: those of the scene's features, else DIV-FF's four."""
    negatives_video: tuple[Words, ...] = ()
    """Phrases that video queries are held against. Empty: those of the scene's features, else DIV-FF's four."""
    prefix_video: Text = ""
    """Put before every phrase asked of the video features ("#C C " as in EgoVideo's captions); negatives stay bare."""
    unit_video_text: bool = True
    """Whether embeddings of phrases asked of the video features have unit length; DIV-FF leaves theirs as they are."""
    temperature: Positive = 10.0
    """Factor of the similarities in the relevancy."""
    threshold: Share = 0.53
    """Relevancy under which the overlay shows the lightened image."""
    strength: Share = 1.0
    """Share of the overlay in the picture, 0 to 1."""
    contour: Optional[bool] = None  # noqa: UP045
    """Whether the overlay outlines where the threshold is reached; None: in the viewer, and nowhere else."""
    presets: tuple[Words, ...] = ()
    """Queries that the viewer offers. Empty: the names in the scene's annotations."""


@dataclass(frozen=True)
class QueryResult:
    """What a query found in one view."""

    config: QueryConfig
    """What was asked."""
    phrases: tuple[str, ...]
    """The phrases of `config.text`."""
    relevancies: Float[Tensor, "height width phrases"]
    """In [0, 1]."""
    masks: Bool[Tensor, "height width phrases"] | None = None
    """What is outlined, where more is known than relevancies tell; None: where the threshold is reached."""

    def pictures(self, rgb: Float[Tensor, "height width 3"]) -> dict[str, Tensor]:
        """The outputs "relevancy" and "relevancy_overlay"; several phrases have a colour of their own each."""
        config = self.config
        strongest = self.relevancies.amax(dim=-1, keepdim=True)
        if len(self.phrases) == 1:
            picture = overlay(rgb, strongest, OVERLAY_OFFSET[config.features], config.threshold, config.strength)
        else:
            picture = overlay_several(rgb, self.relevancies, config.threshold, config.strength)
        if config.contour:
            masks = self.relevancies >= config.threshold if self.masks is None else self.masks
            picture = outlined(picture, masks)
        return {"relevancy": strongest, "relevancy_overlay": picture}

    def best(self, phrase: int) -> tuple[int, int, float]:
        """Row, column and relevancy of the pixel that is most relevant to a phrase."""
        found = self.relevancies[..., phrase]
        pixel = int(found.argmax())
        return *divmod(pixel, found.shape[1]), float(found.flatten()[pixel])


class Query:
    """Answers the query of its configuration about rendered features.

    The configuration may be replaced at any time (`ask`), also from other threads; a render that is under way keeps the
    one that it started with. Text encoders are asked at the first phrase only, and their answers remembered.

    Args:
        config: The query to begin with. It is not encoded yet.
        encoders: Text encoder of each kind of features that there is.
        negatives: Phrases that the features' own source wants queries held against.
        decoders: What turns rendered features of a kind into embeddings, where they are codes.

    Attributes:
        examples: Features that stand for phrases, by phrase and kind.
        error: Why the query could not be answered at the last render, if so.

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
        self.examples: dict[str, dict[str, Example]] = {}
        self.error: str | None = None
        self._changing = Lock()
        self._remembered: OrderedDict[tuple[str, str], Tensor] = OrderedDict()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of features that can be asked."""
        return tuple(self.encoders)

    def names(self, kind: str) -> tuple[str, ...]:
        """The only things that a kind's text encoder, which must work, has learned to tell apart; none: more."""
        try:
            return tuple(getattr(self.encoders[kind], "names", ()))
        except Exception as error:  # whatever a foreign encoder or its download may raise
            raise _unusable(kind, error) from error

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases asked for; none: nothing is asked."""
        return split_phrases(self.config.text)

    @property
    def active(self) -> bool:
        """Whether something is asked that the scene's features can answer."""
        return bool(self.phrases) and self.config.features in self.encoders

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that `answer` adds; none while nothing is asked."""
        return ANSWERS if self.active else ()

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
        phrases = split_phrases(config.text)
        if phrases and (not changes or changes.keys() - _PICTURE_FIELDS):
            self._embeddings(config, config.features, phrases)
        with self._changing:
            # Encoding takes its time, in which another thread may have changed another field.
            self.config, self.error = replace(self.config, **changes), None

    @property
    def known(self) -> bool:
        """Whether the query can be answered without asking a text encoder, which may take long to load."""
        config = self.config
        asked = self._asked(config, config.features, split_phrases(config.text))
        asked += self.negatives(config.features, config)
        return all((config.features, phrase) in self._remembered or phrase in self.examples for phrase in asked)

    def embeddings(self, kind: str, phrases: Sequence[str]) -> Float[Tensor, "phrases dim"]:
        """What the text encoder of a kind of features makes of phrases.

        Raises:
            QueryError: If there are no such features, or their text encoder does not work.
        """
        return self._encode(kind, self._asked(self.config, kind, phrases))

    def check(self, kind: str, phrases: Sequence[str]) -> None:
        """Finds out whether phrases can be asked of one kind of features, and remembers their embeddings.

        Raises:
            QueryError: If there are no such features, or their text encoder does not work.
        """
        self._embeddings(self.config, kind, phrases)

    def decode(self, features: Float[Tensor, "*bs code"], kind: str) -> Float[Tensor, "*bs dim"]:
        """Rendered features as embeddings that phrases can be compared with; the same where they are such already."""
        decode = self.decoders.get(kind)
        if decode is None:
            return features
        parts = features.flatten(0, -2).split(_DECODED)
        return torch.cat([decode(part) for part in parts]).unflatten(0, features.shape[:-1])

    def relevancies(
        self, features: Float[Tensor, "*bs dim"], kind: str, phrases: Sequence[str], decoded: bool = False
    ) -> Float[Tensor, "*bs phrases"]:
        """Relevancy of features to each of several phrases, whatever is being asked in `config.text`.

        Args:
            features: Rendered features of that kind, of unit length.
            kind: "image" or "video".
            phrases: What to look for.
            decoded: Whether `decode` has been called on them, which another question to the same features need not.

        Returns:
            Relevancies in [0, 1], a channel per phrase.

        Raises:
            QueryError: If there are no such features, or their text encoder does not work.
        """
        return self._relevancies(self.config, features, kind, phrases, decoded)

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
        try:
            answer = self.look(features)
        except DivffError as error:  # of the query, or of the file that decodes the features
            if self.error != str(error):
                CONSOLE.print(f"[bold yellow]{escape(str(error))}")
            self.error = str(error)
            return {}
        return answer.pictures(outputs["rgb"]) if answer is not None else {}

    @torch.no_grad()
    def look(self, features: Mapping[str, Tensor]) -> QueryResult | None:
        """Answers the query about the features of a view.

        Args:
            features: As for `answer`.

        Returns:
            The answer; None if nothing is asked, or the features that shall answer are not there.

        Raises:
            QueryError: If the text encoder does not work, or an example is not there.
        """
        config = self.config
        phrases = split_phrases(config.text)
        if not phrases or config.features not in features:
            return None
        kind = config.features
        return QueryResult(config, phrases, self._relevancies(config, features[kind], kind, phrases))

    def _relevancies(
        self, config: QueryConfig, features: Tensor, kind: str, phrases: Sequence[str], decoded: bool = False
    ) -> Tensor:
        compared = partial(self._compared, config, kind, phrases, *self._embeddings(config, kind, phrases))
        if decoded or kind not in self.decoders:
            return compared(features)
        parts = features.flatten(0, -2).split(_DECODED)
        return torch.cat([compared(self.decode(part, kind)) for part in parts]).unflatten(0, features.shape[:-1])

    def _compared(
        self,
        config: QueryConfig,
        kind: str,
        phrases: Sequence[str],
        positives: Tensor,
        negatives: Tensor,
        embeddings: Tensor,
    ) -> Tensor:
        """Relevancies of what has been decoded."""
        if positives.shape[-1] != embeddings.shape[-1]:
            raise QueryError(
                f"The text encoder of the {kind} features gives {positives.shape[-1]} values where they have "
                f"{embeddings.shape[-1]}: name the one that they were made with."
            )
        found = relevancy(embeddings, positives.to(embeddings), negatives.to(embeddings), config.temperature)
        for i, phrase in enumerate(phrases):
            if phrase in self.examples:
                found[..., i] = self._example(phrase, kind).relevancy(embeddings)
        return found

    def _embeddings(self, config: QueryConfig, kind: str, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings of the phrases and of the negatives."""
        asked = self._asked(config, kind, phrases)
        return self._encode(kind, asked), self._encode(kind, self.negatives(kind, config))

    def _asked(self, config: QueryConfig, kind: str, phrases: Sequence[str]) -> tuple[str, ...]:
        """The phrases as their text encoder gets them; examples stay what they are."""
        if kind != "video":
            return tuple(phrases)
        pointed = {phrase for phrase in phrases if phrase in self.examples or EXAMPLE_NAME.fullmatch(phrase)}
        return tuple(each if each in pointed else config.prefix_video + clean_query(each) for each in phrases)

    def _example(self, phrase: str, kind: str) -> Example:
        if kind not in self.examples[phrase]:
            raise QueryError(f"{phrase} has no {kind} features: point at it again, or ask the other features.")
        return self.examples[phrase][kind]

    def _encode(self, kind: str, phrases: Sequence[str]) -> Tensor:
        if kind not in self.encoders:
            there = " and ".join(self.encoders) or "no"
            raise QueryError(f"This run has {there} features, not {kind} features: extract them with `divff extract`.")
        known: dict[str, Tensor] = {}
        for phrase in phrases:
            if phrase in self.examples:
                known[phrase] = self._example(phrase, kind).feature
            elif (remembered := self._remembered.get((kind, phrase))) is not None:  # another thread may forget it
                known[phrase] = remembered
        if missing := [phrase for phrase in dict.fromkeys(phrases) if phrase not in known]:
            for phrase in missing:
                if EXAMPLE_NAME.fullmatch(phrase):
                    raise QueryError(f"Nothing has been pointed at as {phrase}: click into the picture first.")
            try:
                fresh = self.encoders[kind](missing).detach().cpu()
            except Exception as error:  # whatever a foreign encoder or its download may raise
                raise _unusable(kind, error) from error
            known.update(zip(missing, fresh, strict=True))
            with self._changing:
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
        make_encoder: Builds a text encoder from the entry of a store's header, see `WhenAsked`.
    """
    asked = {kind: store.header for kind, store in stores.items() if store.header.text_encoder is not None}
    entries = {kind: dict(header.text_encoder or {}) for kind, header in asked.items()}
    if "video" in entries and not config.unit_video_text:
        entries["video"]["normalise"] = False
    return Query(
        config,
        {kind: WhenAsked(make_encoder, entry) for kind, entry in entries.items()},
        {kind: header.negatives for kind, header in asked.items()},
        {kind: stores[kind].decode for kind, header in asked.items() if header.decoder is not None},
    )


def _unusable(kind: str, error: Exception) -> QueryError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return QueryError(f"The text encoder of the {kind} features cannot be used: {reason}")


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
