"""``divff download epic-diff``: the published scenes, and the weights that belong to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import tyro
from pydantic import Field

from divff_nerfstudio.archives import check_archive
from divff_nerfstudio.data.scene import SceneError, load_scene
from divff_nerfstudio.download.catalogue import CATALOGUE, NOT_PUBLIC, SCENES, Item, What
from divff_nerfstudio.download.cloud import fetch_folder
from divff_nerfstudio.download.fetch import DownloadError, Remote, fetch
from divff_nerfstudio.download.unpack import unpack
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.schema import Words


@dataclass
class DownloadConfig:
    """Fetch EPIC-Diff: by default cameras, motion masks and sampled frames of all ten scenes.

    What is interrupted continues where it stopped. Archives stay in ROOT/archives; a file that was fetched by hand is
    put there. Each file's SHA-256 is recorded beside it at its first download, and compared from then on.
    """

    dataset: Annotated[Literal["epic-diff"], tyro.conf.Positional]
    """The data set."""
    root: Path
    """Folder of the data set; the scenes become its subfolders."""
    scenes: Annotated[tuple[Words, ...], Field(min_length=1)] = SCENES
    """Scenes to unpack."""
    what: Annotated[tuple[What, ...], Field(min_length=1)] = ("metadata", "frames")
    """What to fetch: metadata (with motion masks), frames; NeuralDiff's, DIV-FF's checkpoints; EgoVideo's, OOAL's
    weights; annotations of objects and affordances."""
    urls: dict[str, str] = field(default_factory=dict)
    """Other addresses, as NAME ADDRESS pairs: a mirror, or where something has moved to."""
    archives: Path | None = None
    """Folder for the archives, if it is not ROOT/archives."""
    overwrite: bool = False
    """Replace files of a scene that differ from the archive's; otherwise they stay."""

    def main(self) -> None:
        """Fetches and unpacks, one item after the other; what is refused does not stop the others.

        Raises:
            DownloadError: An option makes no sense, or something could not be fetched.
            ArchiveError: An archive is damaged or wants to write elsewhere.
        """
        from nerfstudio.utils.rich_utils import CONSOLE
        from rich.markup import escape

        self._check_options()
        failed: list[str] = []
        for name in dict.fromkeys(self.what):
            item = CATALOGUE[name]
            if name in self.urls:
                item = replace(item, url=self.urls[name])
            CONSOLE.print(f"[bold]{name}[/]: {item.title}")
            try:
                self._get(item)
            except DivffError as error:
                CONSOLE.print(f"[red]{name}[/]: {escape(str(error))}")
                failed.append(name)
        if "frames" in self.what or "metadata" in self.what:
            for line in self._state():
                CONSOLE.print(escape(line))
        CONSOLE.print(NOT_PUBLIC)
        if failed:
            raise DownloadError(
                f"{', '.join(failed)} could not be had, for the reason above; the rest is in {self.root}: start the "
                "same command again once that is mended."
            )

    def _check_options(self) -> None:
        for option, values, known in (("scenes", self.scenes, SCENES), ("what", self.what, CATALOGUE)):
            if not values:
                raise DownloadError(f"--{option} names nothing: name some of {', '.join(known)}, or leave it out.")
        for scene in self.scenes:
            if scene not in SCENES:
                raise DownloadError(f"EPIC-Diff has no scene {scene}: choose among {', '.join(SCENES)}.")
        for name in self.urls:
            if name not in CATALOGUE:
                raise DownloadError(f"Nothing here is called {name}: --urls knows {', '.join(CATALOGUE)}.")
        if self.root.exists() and not self.root.is_dir():
            raise DownloadError(f"{self.root} is no folder: give another --root.")

    def _get(self, item: Item) -> None:
        from nerfstudio.utils.rich_utils import CONSOLE

        target = self.root / item.target
        if item.kind == "folder":
            fetch_folder(item.url, item.page, target / item.file_name)
            return
        remote = Remote(item.url, item.page, item.sha256)
        if item.kind == "weights":
            from divff_nerfstudio.checkpoints import require_whole

            CONSOLE.print(f"It is at {fetch(remote, target / item.file_name, require_whole)}.")
            return
        archive = (self.archives or self.root / "archives") / item.file_name
        fetch(remote, archive, lambda path: check_archive(path, item.max_bytes))
        place = scene_place(self.scenes, PurePosixPath(f"README_{archive.stem}.txt"))
        done = unpack(archive, target, place, item.max_bytes, self.overwrite)
        CONSOLE.print(f"{done.written} files unpacked into {target}, {done.present} were there.")
        if done.written + done.present + len(done.kept) == 0:
            raise DownloadError(
                f"{archive} holds nothing of {', '.join(self.scenes)}: it is another archive than expected; look at "
                f"{item.page}."
            )
        if done.kept:
            CONSOLE.print(
                f"{len(done.kept)} differ from the archive's and stay, as {done.kept[0]}: --overwrite replaces them."
            )

    def _state(self) -> list[str]:
        """A line per scene: whether it can be used."""
        lines = []
        for name in self.scenes:
            try:
                scene = load_scene(self.root / name, check_frames=False)
                missing = [path for path in scene.image_paths if not path.is_file()]
                if missing:
                    raise SceneError(f"{missing[0]} is missing, of {len(scene)} frames {len(missing)} are.")
                lines.append(f"{name}: {len(scene)} frames of {scene.width}x{scene.height}, complete.")
            except SceneError as error:
                lines.append(f"{name}: not complete. {error}")
        return lines


def scene_place(scenes: tuple[str, ...], readme: PurePosixPath) -> Callable[[PurePosixPath], PurePosixPath | None]:
    """Where the files of an archive go: those of `scenes` into a folder of that name, a readme (the licence) beside.

    Scenes are found by name at any depth, since the archives differ in what lies above.

    Args:
        scenes: Scenes that are asked for.
        readme: Where the archive's own readme goes.
    """

    def place(path: PurePosixPath) -> PurePosixPath | None:
        for depth, part in enumerate(path.parts[:-1]):
            if part in SCENES:
                return PurePosixPath(*path.parts[depth:]) if part in scenes else None
        if path.stem.lower() in ("readme", "license", "licence") and len(path.parts) <= 2:
            return readme if path.stem.lower() == "readme" else readme.with_name(path.name)
        return None

    return place
