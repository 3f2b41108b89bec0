"""``divff batch``: many scenes as one job."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from divff_nerfstudio.batch.manifest import (
    USUAL_STEPS,
    Defaults,
    Manifest,
    ManifestError,
    Method,
    Needs,
    StepName,
    read_manifest,
)
from divff_nerfstudio.batch.plans import convert_words, plans_of
from divff_nerfstudio.batch.run import BatchOptions, run_batch, say
from divff_nerfstudio.errors import DivffError
from divff_nerfstudio.outputs import check_output_folder
from divff_nerfstudio.schema import check_options, split_words

_METHODS = frozenset(("divff", "divff-paper", "divff-splat"))
"""Those of this package, for which nothing has to be imported."""
Checked = StepName | Literal["import"]
"""Commands whose options are looked at."""
_GIVEN: dict[Checked, tuple[str, ...]] = {
    "import": ("--scene", "--output"),
    "extract": ("--data",),
    "train": ("--data", "--output-dir", "--experiment-name", "--timestamp", "--load-config"),
    "evaluate": ("--load-config", "--data", "--output"),
    "export": ("--load-config", "--data", "--output"),
}
"""Options by which a batch tells commands what to read and where to write."""


@dataclass
class BatchConfig:
    """Takes many scenes through conversion, features, training, evaluation and export, each as a job of its own. What
    is finished is kept: the same line, typed again, goes on. `divff batch status FOLDER` tells how far it is.
    """

    manifest: Annotated[Path, tyro.conf.Positional]
    """A .csv or .yaml file that names the scenes, or a folder of scenes and videos."""
    output: Path = Path("divff-batch")
    """Folder for runs, scores, exports, notes and the page."""
    steps: tuple[StepName, ...] = USUAL_STEPS
    """What is done with scenes for which the manifest does not say it."""
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
        if not self.steps or not self.methods:
            raise DivffError("--steps and --methods name nothing: name some, or leave the options out.")
        manifest = read_manifest(self.manifest, Defaults(tuple(self.steps), tuple(self.methods), words))
        check_options_of(manifest)
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


def check_options_of(manifest: Manifest) -> None:
    """Has each command read its options before hours are spent, each different line of them once.

    Raises:
        ManifestError: With a sentence for each that a command does not take, and for each method that there is not.
    """
    first: dict[tuple[Checked, str, tuple[str, ...]], str] = {}
    for entry in manifest.entries:
        for step in entry.steps:
            for method in entry.methods:
                if step == "train" and (words := entry.imported(method)):
                    first.setdefault(("import", "", words), entry.place)
                else:
                    name = method if step == "train" else ""
                    first.setdefault((step, name, entry.options(step, method)), entry.place)
    faults = []
    for (step, method, words), place in first.items():
        if step == "train" and method not in _METHODS and method not in (known := registered_methods()):
            faults.append(f"{place}: there is no method {method}, choose from {', '.join(sorted(known))}")
            continue
        if words and (fault := _fault_of(step, method, words)) is not None:
            faults.append(f"{place}: {step} is not as its command wants it ({fault})")
    if faults:
        raise ManifestError(
            f"{manifest.path} has options or methods that are none, mend them:\n- " + "\n- ".join(faults)
        )


def registered_methods() -> dict[str, Any]:
    """Configurations of the registered methods of this package's kind, by name."""
    from divff_nerfstudio.evaluation.runs import our_configs

    return {config.method_name: config for config in our_configs()}


def _fault_of(step: Checked, method: str, words: Sequence[str]) -> str | None:
    """What a command says of its options; None if it takes them."""
    for word in words:
        if (name := word.partition("=")[0].replace("_", "-")) in _GIVEN.get(step, ()):
            return f"{name} is for the batch to say, leave it out"
    kind, default, needed = _command(step, method)
    given: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            _check_ranges(step, tyro.cli(kind, args=[*needed(words)], **given))
    except SystemExit:
        return _worded(said.getvalue())[:300] or "it prints its help"
    except DivffError as error:
        return str(error).rstrip(".")
    return None


def _check_ranges(step: Checked, options: Any) -> None:
    """Raises OptionError for what a command would refuse when it is run."""
    if step != "train":
        check_options(options)
        return
    from divff_nerfstudio.option_ranges import check_config

    check_config(options)


def _worded(text: str) -> str:
    """What a parser prints, without the box around it."""
    inside = (c if c.isprintable() and not 0x2500 <= ord(c) < 0x2580 else " " for c in text)
    return " ".join("".join(inside).split())


def _command(step: Checked, method: str) -> tuple[Any, Any, Any]:
    """What reads a step's options: its class, its defaults, and what comes before them."""
    if step == "convert":
        from divff_nerfstudio.cli.convert import ConvertConfig

        return ConvertConfig, None, lambda words: convert_words(words, "SCENE")
    if step == "import":
        from divff_nerfstudio.importing import ImportConfig

        return ImportConfig, None, lambda words: (*words, "--scene", "SCENE", "--output", "RUN")
    if step == "extract":
        from divff_nerfstudio.features.extract import ExtractConfig

        return ExtractConfig, None, lambda words: ("--data", "SCENE", *words)
    if step == "train":
        config: Any = registered_methods()[method]
        return tyro.conf.FlagConversionOff[type(config)], config, lambda words: words
    from divff_nerfstudio.cli.evaluate import EvaluateConfig
    from divff_nerfstudio.cli.export import ExportConfig

    kind = EvaluateConfig if step == "evaluate" else ExportConfig
    return kind, None, lambda words: ("--load-config", "RUN/config.yml", *words)
