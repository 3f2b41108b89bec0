"""``divff extract``: the features of a scene, frame by frame, into its feature stores."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from divff_nerfstudio.data.scene import load_scene
from divff_nerfstudio.features.clip_source import ClipSourceConfig
from divff_nerfstudio.features.egovideo.source import EgoVideoSourceConfig
from divff_nerfstudio.features.hotspots import HotspotSourceConfig
from divff_nerfstudio.features.open_clip_source import PatchSourceConfig, SegmentSourceConfig
from divff_nerfstudio.features.pictures import Pictures
from divff_nerfstudio.features.sources import SOURCES, source_class
from divff_nerfstudio.features.store import FeatureWriter, store_root
from divff_nerfstudio.features.xclip import XClipSourceConfig


@dataclass
class ExtractConfig:
    """Extracts the features of a scene that are distilled. Stopped at any moment, it goes on where it stopped."""

    data: Path
    """Folder of the scene."""
    encoder: str = "ViT-B-16/laion2b_s34b_b88k"
    """What looks at the pictures: a model and weights of open_clip, MODEL/FILE with your own file of weights, an
    encoder's folder, or "demo", which comes with this package, needs no download and knows the demo's world only."""
    sources: tuple[str, ...] = ("image", "video", "regulariser")
    """Which features: image (what is it), video (what is done here), regulariser, or your own class, module:Class."""
    output: Path | None = None
    """Folder of the stores; None: SCENE/features, or the user's cache where the scene may not be written to."""
    overwrite: bool = False
    """Replace features that were extracted with other settings."""
    video_dir: Path | None = None
    """Folder of the video's frames, if it is not SCENE/high_res_video."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto: a GPU where there is one."""
    image: SegmentSourceConfig = field(default_factory=SegmentSourceConfig)
    """Options of the image-language features."""
    video: ClipSourceConfig = field(default_factory=ClipSourceConfig)
    """Options of the video-language features."""
    regulariser: PatchSourceConfig = field(default_factory=PatchSourceConfig)
    """Options of the regulariser."""
    egovideo: EgoVideoSourceConfig = field(default_factory=EgoVideoSourceConfig)
    """Options of the video-language features of EgoVideo."""
    xclip: XClipSourceConfig = field(default_factory=XClipSourceConfig)
    """Options of the video-language features of X-CLIP."""
    hotspot: HotspotSourceConfig = field(default_factory=HotspotSourceConfig)
    """Options of the interaction hotspots."""

    def __post_init__(self) -> None:
        self.hotspot.clips = getattr(self, self.hotspot.video, None)

    def main(self) -> list[Path]:
        """Extracts what is not there yet.

        Returns:
            The folders of the stores.

        Raises:
            DivffError: If the scene, the encoder or a store is not usable; the message says what to do.
        """
        pictures = Pictures(load_scene(self.data, video_dir=self.video_dir))
        root = store_root(pictures.scene, self.output)
        classes = [source_class(name) for name in self.sources]
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        stores = []
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=CONSOLE) as progress:
            for name, made in zip(self.sources, classes, strict=True):
                options: Any = getattr(self, name) if name in SOURCES else None
                source = made(pictures, self.encoder, torch.device(device), options)
                task = progress.add_task(f"{source.kind} features", total=len(pictures.scene))
                with FeatureWriter(root / source.kind, source.header(), source.row_length, self.overwrite) as writer:
                    progress.update(task, completed=len(writer))
                    for frame in range(len(writer), len(pictures.scene)):
                        writer.append(source.extract(frame))
                        progress.advance(task)
                    stores.append(writer.finish(source.reduce if source.row_length else None).directory)
        CONSOLE.print(f"Features of {len(pictures.scene)} frames lie in {root}.")
        return stores
