"""What a run writes down of itself, and where: a folder of its own, which one process at a time trains into."""

from __future__ import annotations

import contextlib
import itertools
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import tyro
import yaml
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE

from divff_nerfstudio.atomic import write_text
from divff_nerfstudio.card import require_card
from divff_nerfstudio.data.epic_diff import EpicDiffDataParserConfig
from divff_nerfstudio.interrupts import end_in_order
from divff_nerfstudio.process import prepare_process
from divff_nerfstudio.run_config import leading_out
from divff_nerfstudio.run_folder import resolve_places
from divff_nerfstudio.training_folder import RunFolder, TrainingError, checkpoint_to_load, claim
from divff_nerfstudio.viewer.listening import require_listening

_AUTOMATIC = "{timestamp}"
"""nerfstudio's timestamp of runs that have not begun."""


@dataclass
class RunConfig(TrainerConfig):
    """Configuration of a training run, whatever is trained."""

    run_dir: tyro.conf.Suppress[Optional[Path]] = None  # noqa: UP045  (tyro and pyright agree on this form)
    """Folder of an imported run; others lie where nerfstudio puts them."""

    def get_base_dir(self) -> Path:
        """Folder with config.yml."""
        usual = super().get_base_dir()
        return usual if self.run_dir is None else self.run_dir

    read_from_file = False
    """Whether it was read from the config.yml of a run, which `run_config` notes; no option."""

    @property
    def folder(self) -> RunFolder | None:
        """The run's folder, where it is this process's."""
        return self.__dict__.get("_folder")

    @folder.setter
    def folder(self, folder: RunFolder | None) -> None:
        self.__dict__["_folder"] = folder

    def __getstate__(self) -> dict[str, Any]:
        """What is written to config.yml."""
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("read_from_file", "_folder", "_numbered")
        }

    @abstractmethod
    def settle(self) -> None:
        """Settles what depends on the device and on the length of the run; what the user has chosen stays.

        Raises:
            TrainingError: If the options make no sense.
        """

    def set_timestamp(self) -> None:
        """Called when a training begins: one that begins with the config.yml of a run gets a folder of its own."""
        prepare_process()
        own_name = self.run_dir is None and self.timestamp != _AUTOMATIC
        if own_name and self.read_from_file:
            earlier = self.get_checkpoint_dir()
            self.timestamp = _AUTOMATIC
            CONSOLE.print(
                f"A training with the options of another gets a folder of its own; to go on with that one, give "
                f"--load-dir {earlier} --timestamp {earlier.parent.name}",
                soft_wrap=True,
                markup=False,
            )
        self.run_dir = None
        self._check_names()
        self._numbered = self.timestamp == _AUTOMATIC
        super().set_timestamp()

    def _check_names(self) -> None:
        """Refuses names by which the run's folder would lie elsewhere than in the folder for runs."""
        names = {"experiment-name": self.experiment_name, "method-name": self.method_name, "timestamp": self.timestamp}
        for option, name in names.items():
            if name is not None and (Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts):
                raise TrainingError(
                    f"--{option} {name!r} leads out of the folder for runs: give a plain name, and the folder by "
                    "--output-dir."
                )
        if outside := leading_out(self):
            option = outside.replace("_", "-")
            raise TrainingError(f"--{option} leads out of the run's folder, which then opens nowhere: leave it out.")

    def save_config(self) -> None:
        """Takes the run's folder and writes config.yml with everything settled, so that a checkpoint opens everywhere.

        Relative places are written as they are seen from here.

        That of a run which is gone on with is written when its checkpoint has been found to fit.

        Raises:
            TrainingError: If the folder cannot be written, or what was trained before would be lost, or scenes shall be
                read in another layout, or by several processes, or the device is not there.
        """
        if self.machine.num_devices * self.machine.num_machines != 1:
            raise TrainingError(
                f"{self.method_name} trains a scene in one process: leave --machine.num-devices and "
                "--machine.num-machines out, and give each card a scene of its own with `divff batch`."
            )
        self._check_device()
        parser: Any = self.pipeline.datamanager.dataparser  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(parser, EpicDiffDataParserConfig):
            raise TrainingError(
                f"{self.method_name} trains on scenes in EPIC-Diff's layout, not what {type(parser).__name__} reads: "
                "leave that dataparser out, and turn the scene into one (`divff convert --help`)."
            )
        if self.is_viewer_enabled():
            require_listening(self.viewer.websocket_host, self.viewer.websocket_port)
        resolve_places(self)
        self.settle()
        end_in_order()
        if not self.claim().resumed:
            self.write_config()

    def _check_device(self) -> None:
        """Refuses a device that is not there, or on which nothing of this runs."""
        kind = self.machine.device_type
        if kind not in ("cpu", "cuda"):
            raise TrainingError(f"--machine.device-type {kind}: {self.method_name} trains on cuda or cpu, give one.")
        require_card(kind, "--machine.device-type")

    def claim(self) -> RunFolder:
        """Takes the run's folder for this process.

        Raises:
            TrainingError: If another process trains into it, or what was trained before would be lost.
        """
        if self.folder is not None:
            return self.folder
        begins_with = checkpoint_to_load(self.load_checkpoint, self.load_dir, self.load_step)
        with self._folder_written():
            folder = self._made_folder()
            claimed = self.folder = claim(folder, self.get_checkpoint_dir(), begins_with)
        return claimed

    def _made_folder(self) -> Path:
        """The run's folder; a name made of the time gets a number where another training began in the same second."""
        stamp, folder = self.timestamp, self.get_base_dir()
        folder.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(2):
            try:
                folder.mkdir(exist_ok=not self.__dict__.pop("_numbered", False))
                return folder
            except FileExistsError:
                if not folder.is_dir():
                    raise
                self._numbered, self.timestamp = True, f"{stamp}-{number}"
                folder = self.get_base_dir()
        raise AssertionError

    @contextlib.contextmanager
    def _folder_written(self) -> Iterator[None]:
        """Says in one sentence what is wrong with the run's folder."""
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self.get_base_dir()} cannot be written ({error.strerror or error}): choose another --output-dir, or "
                "make room there."
            ) from error

    def write_config(self) -> None:
        """Writes config.yml, whole or not at all.

        Raises:
            TrainingError: If it cannot be written.
        """
        path = self.get_base_dir() / "config.yml"
        CONSOLE.log(f"Saving config to: {path}")
        with self._folder_written():
            write_text(path, yaml.dump(self))
        if self.folder is not None:
            self.folder.written.append(path)
