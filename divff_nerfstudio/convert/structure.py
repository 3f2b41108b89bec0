"""Structure from motion: COLMAP as a program or, where it is not installed, as the library pycolmap."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from divff_nerfstudio.convert.names import ConvertError
from divff_nerfstudio.errors import install_extra

Engine = Literal["auto", "colmap", "pycolmap"]
Matcher = Literal["auto", "exhaustive", "sequential"]
FEW = 250
"""Up to this many frames all pairs are matched; a longer video only neighbours, and neighbours 2, 4, 8 ... apart."""
OVERLAP = 12
"""Neighbours that each frame of a long video is matched with."""

_NOTHING = "failed to create sparse model"
"""What the program's mapper says at its end where nothing can be reconstructed."""
_LAST_WORDS = 2000
"""Letters."""
_KILLED = (-9, 128 + 9)
"""Statuses of a program that SIGKILL has ended, and of a shell that has started it."""


class _Steps(Protocol):
    """What an engine does; each step writes into the database or the model folder."""

    def features(self, images: Path, masks: Path | None, database: Path, model: str) -> None: ...

    def match(self, database: Path, exhaustive: bool) -> None: ...

    def map(self, images: Path, database: Path, output: Path) -> None: ...


class Command:
    """The program ``colmap``, of any version since 3.6."""

    def __init__(self, program: str, log: Path):
        self.program = program
        self.log = log

    @cached_property
    def _has_cuda(self) -> bool:
        head = subprocess.run([self.program, "help"], capture_output=True, text=True, check=False)
        return "with CUDA" in head.stdout + head.stderr and shutil.which("nvidia-smi") is not None

    def _gpu_option(self, command: str, old: str, new: str) -> list[str]:
        """Without a GPU the program must be told so, by an option whose name depends on its version."""
        known = subprocess.run([self.program, command, "-h"], capture_output=True, text=True, check=False)
        name = next((name for name in (new, old) if name in known.stdout + known.stderr), None)
        return [] if name is None else [f"--{name}", str(int(self._has_cuda))]

    def _run(self, command: str, *options: str) -> None:
        """Runs a command, its output going to the log.

        Raises:
            ConvertError: If it fails.
        """
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {self.program} {command} {' '.join(options)}\n")
            log.flush()
            done = subprocess.run([self.program, command, *options], stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode in _KILLED:
            raise ConvertError(
                f"colmap {command} was killed, as systems do where memory is not enough: give it more, or lower "
                f"--num-frames (its log is {self.log})."
            )
        if done.returncode:
            raise ConvertError(f"colmap {command} failed: look into {self.log} for the reason.")

    def features(self, images: Path, masks: Path | None, database: Path, model: str) -> None:
        """Finds features in all images; one camera took them all."""
        self._run(
            "feature_extractor", "--database_path", str(database), "--image_path", str(images),
            "--ImageReader.single_camera", "1", "--ImageReader.camera_model", model,
            *(["--ImageReader.mask_path", str(masks)] if masks else []),
            *self._gpu_option("feature_extractor", "SiftExtraction.use_gpu", "FeatureExtraction.use_gpu"),
        )  # fmt: skip

    def match(self, database: Path, exhaustive: bool) -> None:
        """Matches features between images."""
        command = "exhaustive_matcher" if exhaustive else "sequential_matcher"
        self._run(
            command, "--database_path", str(database),
            *([] if exhaustive else ["--SequentialMatching.overlap", str(OVERLAP)]),
            *self._gpu_option(command, "SiftMatching.use_gpu", "FeatureMatching.use_gpu"),
        )  # fmt: skip

    def map(self, images: Path, database: Path, output: Path) -> None:
        """Reconstructs poses and points; several models where the images fall apart, none where nothing can be."""
        try:
            self._run(
                *("mapper", "--database_path", str(database), "--image_path", str(images)),
                *("--output_path", str(output)),
            )
        except ConvertError:
            if _NOTHING not in self.log.read_text("utf-8", errors="replace")[-_LAST_WORDS:].lower():
                raise


class Library:
    """The same steps by pycolmap."""

    def __init__(self) -> None:
        try:
            import pycolmap
        except ImportError:
            raise ConvertError(
                "Neither the program colmap nor the package pycolmap is installed: apt-get install colmap, or "
                f"{install_extra('convert')}."
            ) from None
        pycolmap.logging.minloglevel = int(pycolmap.logging.ERROR)
        self._colmap: Any = pycolmap

    def features(self, images: Path, masks: Path | None, database: Path, model: str) -> None:
        """As `Command.features`."""
        reader = self._colmap.ImageReaderOptions(camera_model=model)
        if masks:
            reader.mask_path = masks
        self._colmap.extract_features(
            database, images, camera_mode=self._colmap.CameraMode.SINGLE, reader_options=reader
        )

    def match(self, database: Path, exhaustive: bool) -> None:
        """As `Command.match`."""
        if exhaustive:
            self._colmap.match_exhaustive(database)
        else:
            options = self._colmap.SequentialPairingOptions()
            options.overlap = OVERLAP
            self._colmap.match_sequential(database, pairing_options=options)

    def map(self, images: Path, database: Path, output: Path) -> None:
        """As `Command.map`."""
        self._colmap.incremental_mapping(database, images, output)


@dataclass(frozen=True)
class StructureFromMotion:
    """Reconstructs a folder of images in steps, each of which is done once."""

    folder: Path
    """Where ``database.db``, ``models/``, the log and the marks of finished steps are kept."""
    images: Path
    """Folder of images; their names in order are the order of the video."""
    masks: Path | None
    """Folder of masks ``<image>.png``, black where no features are to be found."""
    camera_model: str
    """COLMAP's name of the camera model."""
    engine: Engine
    matcher: Matcher

    def run(self, say: Callable[[str], None]) -> Path:
        """Reconstructs.

        Args:
            say: Is told what is being done.

        Returns:
            Folder of the model with the most images.

        Raises:
            ConvertError: If a step fails or nothing can be reconstructed.
        """
        steps = self._steps()
        database, models = self.folder / "database.db", self.folder / "models"
        count = sum(1 for _ in self.images.iterdir())
        exhaustive = self.matcher == "exhaustive" or (self.matcher == "auto" and count <= FEW)

        def features() -> None:
            for left in self.folder.glob("database.db*"):
                left.unlink()
            steps.features(self.images, self.masks, database, self.camera_model)

        def mapping() -> None:
            shutil.rmtree(models, ignore_errors=True)
            models.mkdir()
            steps.map(self.images, database, models)

        how = "all pairs" if exhaustive else "neighbours"
        self._once("features", f"Finding features in {count} frames", features, say)
        self._once("matches", f"Matching {how}", lambda: steps.match(database, exhaustive), say)
        self._once("map", "Reconstructing poses and points", mapping, say)
        found = [path for path in models.iterdir() if (path / "images.bin").is_file()]
        if not found:
            raise ConvertError(
                f"COLMAP finds no reconstruction of the {count} frames (its log is {self.folder / 'colmap.log'}): give "
                "more or sharper frames (--num-frames), a stretch with more motion (--first, --last), or masks of the "
                "hands."
            )
        return max(found, key=_registered)

    def _steps(self) -> _Steps:
        program = shutil.which("colmap")
        if self.engine == "pycolmap" or (self.engine == "auto" and program is None):
            return Library()
        if program is None:
            raise ConvertError(
                "The program colmap is not installed: apt-get install colmap, or choose --engine pycolmap."
            )
        return Command(program, self.folder / "colmap.log")

    def _once(self, name: str, what: str, step: Callable[[], None], say: Callable[[str], None]) -> None:
        mark = self.folder / f"{name}.done"
        if mark.exists():
            return
        say(f"{what} ...")
        step()
        mark.touch()


def _registered(model: Path) -> int:
    """Number of images in a binary model: the first eight bytes of the file."""
    with (model / "images.bin").open("rb") as file:
        return int.from_bytes(file.read(8), "little")
