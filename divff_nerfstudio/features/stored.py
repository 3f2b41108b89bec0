"""A scene's stored features as training wants them, and the line that extracts what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nerfstudio.utils.rich_utils import CONSOLE

from divff_nerfstudio.data.scene import SceneError, SceneFolder
from divff_nerfstudio.features.sources import DEFAULT_SOURCES
from divff_nerfstudio.features.store import HINTS, FeatureStore, FeatureStoreError, store_root, stores_of
from divff_nerfstudio.schema import split_words

EXTRACT_OPTIONS = "--pipeline.datamanager.extract-options"


@dataclass(frozen=True)
class StoredFeatures:
    """What `divff extract` has written for a scene, hints aside."""

    scene: SceneFolder
    """The scene."""
    folder: Path | None = None
    """Folder of the stores, if it is not the place where `divff extract` puts them."""
    options: str = ""
    """Options of `divff extract`, for what is missing."""

    @property
    def root(self) -> Path:
        """Where new stores are put."""
        return store_root(self.scene, self.folder)

    @property
    def hints(self) -> Path:
        """Folder of the hints, if there are any."""
        return stores_of(self.scene.root, self.folder).get(HINTS, self.root / HINTS)

    def folders(self) -> list[Path]:
        """Those of the finished stores."""
        return [folder for name, folder in stores_of(self.scene.root, self.folder).items() if name != HINTS]

    def found(self) -> dict[str, FeatureStore]:
        """The finished stores by kind.

        Raises:
            FeatureStoreError: If one is damaged, or called as another kind.
        """
        stores = {folder.name: FeatureStore.open(folder) for folder in self.folders()}
        for name, store in stores.items():
            if store.header.kind != name:
                raise FeatureStoreError(
                    f"{store.directory} holds {store.header.kind} features: call it so, or remove it."
                )
        return stores

    def open(self, every: bool, extract: bool) -> dict[str, FeatureStore]:
        """The stores by kind, to train on.

        Args:
            every: Whether all kinds of `DEFAULT_SOURCES` must be there.
            extract: Whether those that are missing are to be extracted now.

        Raises:
            SceneError: If a kind is missing that is not to be, or a store was made from other frames.
        """
        stores = self.found()
        missing = [kind for kind in DEFAULT_SOURCES if kind not in stores] if every or not stores else []
        if missing and extract:
            command = self.command(missing)
            CONSOLE.print(f"Extracting features first: {shlex.join(command)}", soft_wrap=True)
            from divff_nerfstudio.features.extract import extract_here  # heavy

            extract_here(command[2:], EXTRACT_OPTIONS)
            stores = self.found()
        elif missing and (every or self.folder is not None):
            raise SceneError(
                f"{self.root} lacks {' and '.join(missing)} features: run `{shlex.join(self.command(missing))}`, or "
                "give --pipeline.datamanager.auto-extract True to have that done now, or --pipeline.datamanager."
                "features none to train geometry alone (auto: with those that there are)."
            )
        for kind, store in stores.items():
            if difference := store.other_frames(self.scene):
                again = shlex.join([*self.command([kind]), "--overwrite"])
                raise SceneError(
                    f"The features in {store.directory} were extracted {difference}: run `{again}`, with the encoder "
                    "that they are to be of."
                )
        return stores

    def check_hotspots(self, video: FeatureStore | None, hotspots: FeatureStore | None) -> FeatureStore:
        """The targets where hands meet objects.

        Args:
            video: The video-language features.
            hotspots: The targets.

        Raises:
            SceneError: If one of them is missing, or they are not in one space.
        """
        if video is None or hotspots is None:
            missing = [kind for kind, store in (("video", video), ("hotspot", hotspots)) if store is None]
            raise SceneError(
                f"The weight of the hotspots is not 0, but {self.scene.root} lacks {' and '.join(missing)} features: "
                f"run `{shlex.join(self.command(missing))}`, or set --pipeline.model.hotspot-weight to 0."
            )
        if video.header.fingerprint != hotspots.header.fingerprint:
            again = [*self.command(["hotspot"]), "--hotspot.video", video.header.source, "--overwrite"]
            raise SceneError(
                f"The hotspots in {hotspots.directory} are features of {hotspots.header.model}, but those in "
                f"{video.directory} of {video.header.model}: run `{shlex.join(again)}`."
            )
        return hotspots

    def command(self, kinds: Sequence[str]) -> list[str]:
        """The line that extracts features of some kinds."""
        scene, video = self.scene, self.scene.video_dir
        return [
            *("divff", "extract", "--data", str(scene.root)),
            *(() if self.folder is None else ("--output", str(self.folder))),
            *(() if video == scene.root / "high_res_video" else ("--video-dir", str(video))),
            *split_words(self.options, EXTRACT_OPTIONS),
            *(() if len(kinds) == len(DEFAULT_SOURCES) else ("--sources", *kinds)),
        ]
