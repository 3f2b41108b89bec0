"""The command line: `main` is `divff`, and each subcommand has a file that is imported when it is asked for."""

from divff_nerfstudio.cli.entry import COMMANDS, main

__all__ = ["COMMANDS", "main"]
