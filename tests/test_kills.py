"""Extractions and trainings that are killed at random moments end with what the unbroken ones end with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("DIVFF_KILLS", "4"))
"""How often each is killed."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
@pytest.mark.parametrize("what", ["extraction", "training"])
def test_what_is_killed_and_resumed_is_the_unbroken_one(tmp_path: Path, what: str) -> None:
    """By the byte; no checkpoint or store is ever seen that is not whole, and nothing unfinished is left."""
    program = Path(__file__).with_name("kill_rounds.py")
    done = subprocess.run(
        [sys.executable, str(program), what, str(KILLS), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["kills"] == KILLS and figures["parts compared"] > 3 and figures["parts that differ"] == []
