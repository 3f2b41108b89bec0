"""``divff batch``: many scenes as one job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Optional

import tyro

from divff_nerfstudio.batch.entries import USUAL_STEPS, Defaults, Method, Needs, SceneEntry, StepName
from divff_nerfstudio.batch.manifest import read_manifest
from divff_nerfstudio.batch.plans import plans_of
from divff_nerfstudio.batch.run import BatchOptions, run_batch, say
from divff_nerfstudio.cli.batch_options import Checked, OptionReader, registered_methods
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.outputs import check_output_folder
from divff_nerfstudio.schema import split_words

_METHODS = frozenset(("divff", "divff-paper", "divff-splat"))
"""Those of this package, for which nothing has to be imported."""


@dataclass
class BatchConfig:
    """Takes many scenes through conversion, features, training, evaluation and export, each as a job of its own. What
    is finished is kept: the same line, typed again, goes on. `divff batch status FOLDER` tells how far it is.
    """

    manifest: Annotated[Path, tyro.conf.Positional]
    """A .csv or .yaml file that names the scenes, or a folder of scenes and videos."""
    output: Path = Path("divff-batch")
    """Folder for runs, scores, exports, notes and the page."""
    steps: Optional[tuple[StepName, ...]] = None  # noqa: UP045
    """What is done with scenes for which the manifest does not say it; by default extract, train and evaluate."""
    methods: tuple[Method, ...] = ("divff",)
    """What is trained where the manifest does not say it."""
    extract: str = ""
    """Options of `divff extract` for all scenes, quoted and with an equals sign: --extract="--encoder demo"."""
    train: str = ""
    """Options of ns-train for all scenes, in the same way."""
    evaluate: str = ""
    """Options of `divff evaluate` for all scenes."""
    export: str = ""
    """Options of `divff export` for all scenes."""
    jobs: Annotated[BatchOptions, tyro.conf.arg(name="")] = field(default_factory=BatchOptions)
    """How jobs are run."""
    dry_run: bool = False
    """Print what would be done, each command as one would type it, and do nothing."""

    def main(self) -> None:
        """Runs what is not finished.

        Raises:
            DivffError: If the manifest has faults, another batch is at work in the same folder, or scenes have failed.
        """
        words: dict[StepName, tuple[str, ...]] = {
            "extract": tuple(split_words(self.extract, "--extract")),
            "train": tuple(split_words(self.train, "--train")),
            "evaluate": tuple(split_words(self.evaluate, "--evaluate")),
            "export": tuple(split_words(self.export, "--export")),
        }
        if self.steps == () or not self.methods:
            raise DivffError("--steps and --methods name nothing: name some, or leave the options out.")
        steps = USUAL_STEPS if self.steps is None else self.steps
        defaults = Defaults(tuple(steps), tuple(self.methods), words, typed=self.steps is not None)
        manifest = read_manifest(self.manifest, defaults, option_faults)
        for step, given in words.items():
            if given and not any(step in entry.steps for entry in manifest.entries):
                raise DivffError(f"--{step} says something of a step that no scene has: name it in --steps, too.")
        output = check_output_folder(self.output).resolve()
        if self.dry_run:
            for plan in plans_of(manifest, output, Needs()):
                say(f"{plan.name}:\n" + "\n".join(f"    {step.typed}" for step in plan.steps))
            return
        engine, needs = self.jobs.started(output)
        try:
            run_batch(plans_of(manifest, output, needs), engine, output, self.jobs, str(self.manifest))
        finally:
            engine.close()


def option_faults(entries: Sequence[SceneEntry]) -> list[str]:
    """Has each command read its options before hours are spent, each different line of them once.

    Args:
        entries: Scenes of a manifest.

    Returns:
        What is wrong, with its place: of options that a command does not take, and of methods that there are not.
    """
    first: dict[tuple[Checked, str, tuple[str, ...]], str] = {}
    for entry in entries:
        for step in entry.steps:
            for method in entry.methods:
                if step == "train" and (words := entry.imported(method)):
                    first.setdefault(("import", "", words), entry.place)
                else:
                    name = method if step == "train" else ""
                    first.setdefault((step, name, entry.options(step, method)), entry.place)
    reader, faults = OptionReader(), []
    for (step, method, words), place in first.items():
        if step == "train" and method not in _METHODS and method not in (known := registered_methods()):
            faults.append(f"{place}: there is no method {method}, choose from {', '.join(sorted(known))}")
            continue
        if words and (fault := reader.fault_of(step, method, words)) is not None:
            faults.append(f"{place}: {step} is not as its command wants it ({fault})")
    return faults
