"""``divff batch status``: how far a batch is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from divff_nerfstudio.batch.page import save_page
from divff_nerfstudio.batch.run import PAGE
from divff_nerfstudio.batch.status import batch_status, status_table


@dataclass
class BatchStatusConfig:
    """Tells how far a batch is: which scenes are finished, running, waiting or have failed, and why."""

    output: Annotated[Path, tyro.conf.Positional] = Path("divff-batch")
    """The batch's folder."""
    page: bool = False
    """Write its page anew, too."""

    def main(self) -> None:
        """Prints the table."""
        from nerfstudio.utils.rich_utils import CONSOLE

        status = batch_status(self.output.resolve())
        CONSOLE.print(status_table(status))
        if self.page:
            save_page(self.output.resolve() / PAGE, status, self.output.resolve())
