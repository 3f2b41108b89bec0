"""The features of a scene, frame by frame, into its feature stores: ``divff extract``, and what training lacks."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from nerfstudio.utils.rich_utils import CONSOLE
from pydantic import Field
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from divff_nerfstudio.card import require_card
from divff_nerfstudio.data.remarks import video_remarks
from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.features.ahead import features_of
from divff_nerfstudio.features.clip_source import ClipSourceConfig
from divff_nerfstudio.features.egovideo.encoder import load_egovideo
from divff_nerfstudio.features.egovideo.source import EgoVideoSourceConfig
from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.hints.source import HintSourceConfig
from divff_nerfstudio.features.hotspots import HotspotSourceConfig
from divff_nerfstudio.features.open_clip_source import PatchSourceConfig, SegmentSourceConfig
from divff_nerfstudio.features.patches import DinoSourceConfig
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.sources import DEFAULT_SOURCES, SOURCES, FeatureSource, source_class, source_name
from divff_nerfstudio.features.store import HINTS, FeatureWriter, store_root
from divff_nerfstudio.features.xclip import XClipSourceConfig, load_xclip
from divff_nerfstudio.heartbeat import beat
from divff_nerfstudio.host_memory import return_freed_memory
from divff_nerfstudio.schema import Words, check_options


@dataclass
class ExtractConfig:
    """Extracts the features of a scene that are distilled. Stopped at any moment, it goes on where it stopped."""

    data: Path
    """Folder of the scene."""
    encoder: Words = "ViT-B-16/laion2b_s34b_b88k"
    """What looks at the pictures: a model and weights of open_clip, MODEL/FILE with your own file of weights, an
    encoder's folder, or "demo", which comes with this package, needs no download and knows the demo's world only."""
    sources: Annotated[tuple[Words, ...], Field(min_length=1)] = tuple(DEFAULT_SOURCES)
    """Which features: image (what is it), video (what is done here), regulariser, each by its default source, or a
    source by its name (segments; egovideo, xclip, clip-tiles; dinov2, patches; hotspot), or your own class,
    module:Class; hints: of what moves and what is hand."""
    output: Path | None = None
    """Folder of the stores; None: SCENE/features, or the user's cache where the scene may not be written to."""
    overwrite: bool = False
    """Replace features that were extracted with other settings, or are damaged."""
    wait: bool = False
    """Wait while another extraction writes the same features, instead of stopping."""
    video_dir: Path | None = None
    """Folder of the video's frames, if it is not SCENE/high_res_video."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto: a GPU where there is one."""
    own: tuple[str, ...] = ()
    """Options of your own source, as NAME=VALUE."""
    segments: SegmentSourceConfig = field(default_factory=SegmentSourceConfig)
    """Options of the image-language features of segments."""
    clip_tiles: ClipSourceConfig = field(default_factory=ClipSourceConfig)
    """Options of the video-language features of clips' tiles by an encoder of open_clip."""
    patches: PatchSourceConfig = field(default_factory=PatchSourceConfig)
    """Options of the regulariser by an encoder of open_clip."""
    dinov2: DinoSourceConfig = field(default_factory=DinoSourceConfig)
    """Options of the regulariser by DINOv2."""
    egovideo: EgoVideoSourceConfig = field(default_factory=EgoVideoSourceConfig)
    """Options of the video-language features of EgoVideo."""
    xclip: XClipSourceConfig = field(default_factory=XClipSourceConfig)
    """Options of the video-language features of X-CLIP."""
    hotspot: HotspotSourceConfig = field(default_factory=HotspotSourceConfig)
    """Options of the interaction hotspots."""
    hints: HintSourceConfig = field(default_factory=HintSourceConfig)
    """Options of the hints of what moves and what is hand."""

    def __post_init__(self) -> None:
        self.hotspot.clips = getattr(self, self.hotspot.video.replace("-", "_"), None)

    def main(self) -> list[Path]:
        """Extracts what is not there yet.

        All models, settings and stores are looked at before the first frame, so that what is missing or differs is
        said at once.

        Returns:
            The folders of the stores.

        Raises:
            DivffError: If the scene, a model or a store is not usable; the message says what to do.
        """
        require_card(self.device.replace("auto", "cpu"), "--device")
        pictures = Pictures(load_scene(self.data, video_dir=self.video_dir))
        for sentence in video_remarks(pictures.scene):
            CONSOLE.print(sentence, soft_wrap=True, markup=False)
        root, names = store_root(pictures.scene, self.output), self._names()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _FramesASecond())
        with (
            Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=CONSOLE) as progress,
            ExitStack() as stack,
        ):
            tasks = {name: progress.add_task(_title(name), total=len(pictures.scene)) for name in names}
            stores, source = {}, None
            for name in reversed(names):  # so that the source of the first name is at hand afterwards
                source = None
                _free()
                progress.update(tasks[name], description=_title(name, "loading its model"))
                source = self._source(name, pictures)
                stores[name] = stack.enter_context(
                    FeatureWriter(root / source.kind, source.header(), source.row_length, self.overwrite, self.wait)
                )
                progress.update(tasks[name], completed=len(stores[name]), description=_title(name))
            for name in names:
                if not stores[name].finished:
                    if source is None:
                        progress.update(tasks[name], description=_title(name, "loading its model"))
                        source = self._source(name, pictures)
                    _fill(stores[name], source, name, progress, tasks[name])
                source = None
                _free()
        CONSOLE.print(f"Features of {len(pictures.scene)} frames lie in {root}.")
        return [stores[name].directory for name in names]

    def _names(self) -> list[str]:
        """The sources by name, ordered by kind, so that two extractions take their locks in one order."""
        if not self.sources:
            raise DivffError(f"--sources names nothing: name some of {', '.join(DEFAULT_SOURCES)}, or leave it out.")
        names = [source_name(name, self.encoder) for name in self.sources]
        if self.own and not any(_takes_own(name) for name in names):
            raise DivffError("--own sets options of a source of your own: name it by --sources.")
        by_kind: dict[str, str] = {}
        for name in names:
            kind = source_class(name).kind
            if by_kind.setdefault(kind, name) != name:
                raise DivffError(
                    f"{by_kind[kind]} and {name} both give {kind} features: extract one of them, or give each an "
                    "--output of its own."
                )
        return [by_kind[kind] for kind in sorted(by_kind)]

    def _source(self, name: str, pictures: Pictures) -> FeatureSource:
        made = source_class(name)
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        options = self._own_options(made, name) if _takes_own(name) else getattr(self, name.replace("-", "_"), None)
        return made(pictures, self.encoder, torch.device(device), options)

    def _own_options(self, made: type[FeatureSource], name: str) -> Any:
        """Options of a user's own source, parsed as its configuration says."""
        if made.config_class is None:
            if self.own:
                raise DivffError(f"{name} takes no options: leave --own out, or give the class a config_class.")
            return None
        arguments = [part for option in self.own for part in _as_argument(option)]
        try:
            return tyro.cli(made.config_class, args=arguments, prog=f"--own (of {name})")
        except SystemExit:
            raise DivffError(f"The options of {name} are not as it wants them: see above, and mend --own.") from None


def extract_here(words: Sequence[str], option: str) -> list[Path]:
    """Does what ``divff extract`` does, in this process: its memory is given back, and random generators go on as if
    nothing had been drawn.

    Args:
        words: What stands behind ``divff extract``.
        option: Where a user gave some of them.

    Returns:
        The folders of the stores.

    Raises:
        DivffError: As `ExtractConfig.main`, and if the words are not understood.
    """
    try:
        options = tyro.cli(ExtractConfig, args=words, prog="divff extract")
    except SystemExit:
        raise DivffError(f"`divff extract` does not understand {option}: see above, and mend it.") from None
    check_options(options)
    try:
        with torch.random.fork_rng():
            return options.main()
    finally:
        _free(True)


def _takes_own(name: str) -> bool:
    """Whether the options of a source are those of ``--own``; those of some registered ones have names of their own."""
    return name not in SOURCES or source_class(name).config_class is not None


def _as_argument(option: str) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    if not equals:
        raise DivffError(f"--own {option} is no NAME=VALUE: write for example --own rows=9.")
    return f"--{name.replace('_', '-')}", value


def _fill(store: FeatureWriter, source: FeatureSource, name: str, progress: Progress, task: TaskID) -> None:
    """Extracts the frames that a store lacks, and completes it."""

    def note(text: str) -> None:
        progress.update(task, description=_title(name, text))

    note("")
    frames = range(len(store), len(source.pictures.scene))
    with closing(features_of(source, frames)) as found:
        for frame, features in zip(frames, found, strict=True):
            try:
                store.append(features)
            except ValueError as error:
                raise DivffError(
                    f"The source {source.name} gave no usable features of frame {frame}: {error}"
                ) from error
            progress.advance(task)
            beat(frame + 1, len(source.pictures.scene))
    source.note = note
    if source.row_length:
        note("putting together")
    store.finish(source.reduce if source.row_length else None)
    note("")


class _FramesASecond(ProgressColumn):
    """How many frames of a source are done in a second."""

    def render(self, task: Task) -> Text:
        """The figure, of the last minute or so; nothing before two frames are done."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} frames/s", style="progress.data.speed")


def _title(name: str, text: str = "") -> str:
    """What a source's line of the progress says, with a few words behind it."""
    kind = source_class(name).kind
    return (kind if kind == HINTS else f"{kind} features") + (f" ({text})" if text else "")


def _free(remembered: bool = False) -> None:
    """Gives back the memory of a source's models, to the system, too, before other models need it.

    Args:
        remembered: Also that of models that loaders remember; on a card, whose memory they take, always.
    """
    if remembered or torch.cuda.is_available():
        for load in (load_egovideo, load_encoder, load_xclip):  # each remembers its last model
            load.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return_freed_memory()
