"""The command `divff`: one subcommand for each thing to do beside nerfstudio's own commands."""

from __future__ import annotations

import argparse
import importlib
import inspect
import signal
import sys
from collections.abc import Sequence

from divff_nerfstudio import __version__, announcements
from divff_nerfstudio.faults import mendable, say, show_any_text, tell
from divff_nerfstudio.interrupts import TerminatedError, exit_status, handled, raise_once

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("divff_nerfstudio.demo:DemoConfig", "from nothing to a trained, evaluated and queried scene"),
    "demo-scene": (
        "divff_nerfstudio.demo_scene:DemoSceneConfig",
        "write a procedural kitchen in EPIC-Diff's layout",
    ),
    "download": (
        "divff_nerfstudio.download.epic_diff:DownloadConfig",
        "fetch what is public of EPIC-Diff, and weights",
    ),
    "convert": (
        "divff_nerfstudio.cli.convert:ConvertConfig",
        "turn a video, a COLMAP model or another scene into a scene folder",
    ),
    "extract": (
        "divff_nerfstudio.features.extract:ExtractConfig",
        "extract the features of a scene that are distilled",
    ),
    "import": (
        "divff_nerfstudio.importing:ImportConfig",
        "make a run of a checkpoint of NeuralDiff or of the published DIV-FF",
    ),
    "evaluate": ("divff_nerfstudio.cli.evaluate:EvaluateConfig", "score a trained scene on its test frames"),
    "query": ("divff_nerfstudio.cli.query:QueryCommandConfig", "ask a trained scene in words"),
    "objects": ("divff_nerfstudio.cli.things:ObjectsConfig", "find the things of a trained scene"),
    "diary": ("divff_nerfstudio.cli.things:DiaryConfig", "tell what was moved, when, from where to where"),
    "video": ("divff_nerfstudio.cli.video:VideoConfig", "write a video of a trained scene"),
    "export": (
        "divff_nerfstudio.cli.export:ExportConfig",
        "write a trained scene as points or as Gaussians",
    ),
    "batch": ("divff_nerfstudio.cli.batch:BatchConfig", "take many scenes through all of that, as jobs"),
    "batch status": ("divff_nerfstudio.cli.batch_status:BatchStatusConfig", "tell how far a batch is"),
    "view": ("divff_nerfstudio.cli.view:ViewConfig", "open the viewer, for this machine alone"),
}
"""Each subcommand's dataclass, which has a method `main`, and what it does. Only the one asked for is imported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        arguments: What was typed behind `divff`; None: what was.

    Returns:
        The exit status: 0, 1 after an error that the user can mend, which is printed as one sentence, 130 after
        Ctrl-C, or 143 after SIGTERM.
    """
    show_any_text()
    typed = sys.argv[1:] if arguments is None else list(arguments)
    name = " ".join(typed[:2])  # a command of two words, or of one
    if name not in COMMANDS:
        name = _parser().parse_args(typed[:1]).command
    typed = typed[len(name.split()) :]
    module, _, attribute = COMMANDS[name][0].partition(":")

    import tyro

    from divff_nerfstudio.schema import check_options

    try:
        with announcements.left_out(), handled(raise_once()):
            config = getattr(importlib.import_module(module), attribute)
            options = tyro.cli(config, args=typed, prog=f"divff {name}", description=inspect.getdoc(config))
            check_options(options)
            options.main()
    except (OSError, MemoryError, RuntimeError) as error:
        told = mendable(error)
        if told is None:
            raise
        tell(told)
        return 1
    except TerminatedError:
        say("Terminated.")
        return exit_status(signal.SIGTERM)
    except KeyboardInterrupt:
        say("Interrupted.")
        return exit_status(signal.SIGINT)
    return 0


def _parser() -> argparse.ArgumentParser:
    """The parser of the first word."""
    lines = (f"  {name:<14}{purpose}" for name, (_, purpose) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="divff",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Dynamic image-video feature fields for egocentric video.",
        epilog="commands:\n" + "\n".join(lines) + "\n\n"
        "Each has its own --help. Training, rendering and viewing: ns-train divff, ns-eval, ns-render, ns-viewer.",
        usage="divff [-h] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"divff-nerfstudio {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    return parser
