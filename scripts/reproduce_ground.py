"""What a reproduction stands on: data and weights that are there, that can be fetched, and that are missing."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from divff_nerfstudio.data.annotations import LabelledMasks, affordance_annotations, object_annotations
from divff_nerfstudio.data.scene import SceneError, SceneFolder, load_scene
from divff_nerfstudio.download.catalogue import What
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.evaluation.baselines.models import BaselineModels
from divff_nerfstudio.evaluation.baselines.ooal.weights import find_weights as find_ooal
from divff_nerfstudio.evaluation.baselines.ooal.weights import load_ooal
from divff_nerfstudio.evaluation.options import TaskGroup
from divff_nerfstudio.features.egovideo.encoder import find_vocabulary
from divff_nerfstudio.features.egovideo.weights import find_weights as find_egovideo
from divff_nerfstudio.features.encoder_loading import load_encoder
from divff_nerfstudio.features.extract import ExtractConfig
from divff_nerfstudio.features.pretrained import EncoderError
from divff_nerfstudio.features.sources import source_name

IMPORTED: dict[str, What] = {"divff-published": "divff", "neuraldiff-published": "neuraldiff"}
"""Methods that are others' checkpoints, imported, and what of the catalogue holds them."""
ANNOTATIONS: dict[TaskGroup, tuple[What, Callable[[SceneFolder], LabelledMasks | None]]] = {
    "objects": ("object-annotations", object_annotations),
    "affordances": ("affordance-annotations", affordance_annotations),
}
"""What of the catalogue a task needs, and what reads it."""
CLIPS = ("egovideo", "xclip", "clip-tiles", "hotspot")
"""Sources that look at clips of the video."""


@dataclass(frozen=True)
class Ground:
    """Data and weights of a reproduction."""

    root: Path
    """Folder of the data set."""
    scenes: tuple[str, ...]
    """Names of the scenes."""
    tasks: tuple[TaskGroup, ...]
    """What is evaluated."""
    baselines: tuple[str, ...]
    """Baselines that are scored."""
    extract: ExtractConfig | None
    """How features are extracted; None: not at all."""
    models: BaselineModels
    """Models of the baselines."""
    published: Mapping[str, Path]
    """Folders of published checkpoints by method."""
    videos: Path | None
    """Folder of the scenes' videos."""
    sampled_clips: bool
    """Whether clips of sampled frames will do."""

    @property
    def sources(self) -> list[str]:
        """Names of the sources of features."""
        chosen = self.extract
        return [] if chosen is None else [source_name(name, chosen.encoder) for name in chosen.sources]

    @property
    def wants_clips(self) -> bool:
        """Whether features are made of clips."""
        return any(name in CLIPS for name in self.sources)

    @property
    def asks_egovideo(self) -> bool:
        """Whether EgoVideo is needed: for features, or for the words that published heads are asked."""
        return "egovideo" in self.sources or ("divff-published" in self.published and set(self.tasks) != {"masks"})

    @property
    def egovideo(self) -> Path | None:
        """EgoVideo's weights, if they are there."""
        try:
            chosen = None if self.extract is None else self.extract.egovideo.weights
            return find_egovideo(chosen, self.root / self.scenes[0])
        except EncoderError:
            return None

    @property
    def asks_ooal(self) -> bool:
        """Whether OOAL is needed."""
        return "ooal" in self.baselines and "affordances" in self.tasks

    def video(self, scene: str) -> Path | None:
        """Where the frames of a scene's video are to be cut from, if anywhere."""
        if self.videos is None:
            return None
        names = (f"{scene}.tar", f"{scene}.mp4", f"{scene}.MP4", scene)
        return next((self.videos / name for name in names if (self.videos / name).exists()), None)

    def checkpoint(self, method: str, scene: str) -> tuple[Path, Path | None] | None:
        """A scene's published checkpoint, and its autoencoder if there is one; None where there is no checkpoint.

        Raises:
            DivffError: If there are several.
        """
        folder = self.published[method]
        inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        found = [path for path in inside if scene in str(path.relative_to(folder))]
        coders = [path for path in found if path.name == "best_ckpt.pth" or "autoencoder" in path.name.lower()]
        checkpoints = [path for path in found if path.suffix in (".ckpt", ".pth", ".pt") and path not in coders]
        for several in (checkpoints, coders):
            if len(several) > 1:
                raise DivffError(
                    f"{folder} holds several files for {scene} ({', '.join(path.name for path in several)}): leave the "
                    "one that is to be imported, or name a folder that holds it alone."
                )
        return (checkpoints[0], coders[0] if coders else None) if checkpoints else None

    def lacking(self) -> list[What]:
        """What of the catalogue is needed and not there."""
        states = [self._state(scene) for scene in self.scenes]
        incomplete = any(isinstance(state, str) for state in states)
        items: list[What] = ["metadata", "frames"] if incomplete else []
        for task, (item, read) in ANNOTATIONS.items():
            if task in self.tasks and any(isinstance(state, str) or read(state) is None for state in states):
                items.append(item)
        for method, item in IMPORTED.items():
            folder = self.published.get(method)
            if folder is not None and not (folder.is_dir() and any(folder.iterdir())):
                items.append(item)
        if self.asks_egovideo and self.egovideo is None:
            items.append("egovideo")
        if self.asks_ooal and self._fault(self._find_ooal):
            items.append("ooal")
        return items

    def survey(self) -> tuple[list[str], list[str]]:
        """Looks at everything that can be looked at without loading a model.

        Returns:
            What is missing, each as a sentence with its remedy; and what to know, though it stops nothing.
        """
        states = {scene: self._state(scene) for scene in self.scenes}
        fetch = f"divff download epic-diff --root {self.root} --scenes"
        faults = [f"{state} `{fetch} {name}` fetches it." for name, state in states.items() if isinstance(state, str)]
        scenes = [state for state in states.values() if not isinstance(state, str)]
        notes: list[str] = []
        for task, (item, read) in ANNOTATIONS.items():
            if task in self.tasks and scenes:
                without = [scene.name for scene in scenes if read(scene) is None]
                self._survey_annotations(task, item, without, faults, notes)
        if self.wants_clips and not self.sampled_clips:
            faults += [
                f"{scene.video_dir} holds no frames of the video, which the paper's clips are made of: give --videos a "
                f"folder with {scene.name}.tar or {scene.name}.mp4 of EPIC-KITCHENS, or say --sampled-clips."
                for scene in scenes
                if not len(scene.video_numbers_available) and self.video(scene.name) is None
            ]
        for method in self.published:
            self._survey_published(method, faults, notes)
        checks: list[Callable[[], object]] = [self._find_egovideo] if self.asks_egovideo else []
        checks += [self._find_ooal] if self.asks_ooal else []
        faults += [fault for check in checks if (fault := self._fault(check))]
        if not torch.cuda.is_available():
            notes.append("There is no GPU here: all of the paper's scenes would take weeks.")
        return faults, notes

    def _survey_annotations(
        self, task: TaskGroup, item: What, without: list[str], faults: list[str], notes: list[str]
    ) -> None:
        """Scenes without annotations: some are told, all are a fault."""
        if len(without) == len(self.scenes):
            rest = " ".join(other for other in self.tasks if other != task)
            folder = item.replace("-", "_")
            faults.append(
                f"No scene in {self.root} has annotations for the task {task}: put them at {self.root / folder}/SCENE/ "
                f"(docs/data.md says where they may be had), or leave the task out (--tasks {rest})."
            )
        elif without:
            notes.append(f"{', '.join(without)} have no annotations for the task {task}: those cells stay empty.")

    def _survey_published(self, method: str, faults: list[str], notes: list[str]) -> None:
        """Scenes without a published checkpoint: some are told, all are a fault."""
        try:
            found = {scene: self.checkpoint(method, scene) for scene in self.scenes}
        except DivffError as error:
            faults.append(str(error))
            return
        without = [scene for scene, files in found.items() if files is None]
        if len(without) == len(found):
            option = "--checkpoints" if method == "divff-published" else "--neuraldiff"
            faults.append(
                f"{self.published[method]} holds no checkpoint of {', '.join(without)}: put each into a folder named "
                f"by its scene, give {option} FOLDER, or leave {method} out of --methods."
            )
        elif without:
            notes.append(f"There is no {method} for {', '.join(without)}: those rows are left out.")
        if method == "divff-published":
            bare = [scene for scene, files in found.items() if files is not None and files[1] is None]
            if bare:
                notes.append(
                    f"{', '.join(bare)} have a checkpoint without an autoencoder (best_ckpt.pth): image features of "
                    f"{method} cannot be asked there."
                )

    @property
    def baseline_models(self) -> dict[str, Callable[[], object]]:
        """What loads each model of the baselines, by name."""
        loads: dict[str, Callable[[], object]] = {}
        wanted = set(self.baselines) if {"objects", "affordances"} & set(self.tasks) else set()
        if wanted & {"owl", "owl-real"}:
            from divff_nerfstudio.evaluation.baselines.owl import Owl
            from divff_nerfstudio.features.sam import SamSegmenterConfig

            loads["OWL"] = lambda: Owl(self.models.owl, torch.device("cpu"))
            loads["SAM"] = SamSegmenterConfig(weights=self.models.sam.weights).setup
        if "ooal" in wanted and self.asks_ooal:
            loads["OOAL"] = lambda: load_ooal(self._find_ooal())
            loads["CLIP of OOAL"] = lambda: load_encoder(self.models.ooal_clip)
        if "lerf" in wanted and self.extract is not None:
            encoder = self.extract.encoder
            loads["image encoder"] = lambda: load_encoder(encoder)
        return loads

    def load_models(self) -> None:
        """Loads each model of the baselines once.

        Raises:
            DivffError: If some are not to be had; each is named.
        """
        faults = []
        for load in self.baseline_models.values():
            faults += [fault] if (fault := self._fault(load)) else []
            gc.collect()
        if faults:
            raise DivffError("\n".join(faults) + "\nOr leave these baselines out with --baselines or --skip-baselines.")

    def _state(self, name: str) -> SceneFolder | str:
        """A scene, or what is wrong with it."""
        try:
            scene = load_scene(self.root / name, check_frames=False)
            missing = [path for path in scene.image_paths if not path.is_file()]
            if missing:
                raise SceneError(f"{missing[0]} is missing, and {len(missing) - 1} more: put them there.")
        except SceneError as error:
            return str(error)
        return scene

    def _find_egovideo(self) -> object:
        options = None if self.extract is None else self.extract.egovideo
        weights = find_egovideo(None if options is None else options.weights, self.root / self.scenes[0])
        return find_vocabulary(None if options is None else options.vocabulary, weights)

    def _find_ooal(self) -> Path:
        return find_ooal(self.models.ooal, self.root / self.scenes[0])

    @staticmethod
    def _fault(check: Callable[[], object]) -> str | None:
        """What a check complains of, if it does."""
        try:
            check()
        except DivffError as error:
            return str(error)
        return None
