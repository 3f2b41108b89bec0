"""Checks this package's numbers against those that the published code has computed; exits with 1 where they differ."""

from __future__ import annotations

import sys

import tyro
from nerfstudio.utils.rich_utils import CONSOLE
from parity_divff import DivffParityConfig
from parity_egovideo import EgoVideoParityConfig
from parity_frozen import FreezeParityConfig
from parity_ooal import OoalParityConfig
from rich.markup import escape

from divff_nerfstudio.errors import DivffError

CHECKS = {
    "divff": DivffParityConfig,
    "egovideo": EgoVideoParityConfig,
    "ooal": OoalParityConfig,
    "freeze": FreezeParityConfig,
}

if __name__ == "__main__":
    try:
        sys.exit(0 if tyro.extras.subcommand_cli_from_dict(CHECKS).main() else 1)  # pyright: ignore
    except DivffError as error:
        CONSOLE.print(f"[red]{escape(str(error))}")
        sys.exit(1)
