"""Runs commands one after the other in this one interpreter, each as its console script does, and tells how they ended.

Started as ``python stranger_programs.py COMMANDS RESULTS``: a JSON list of lists of words goes in, a JSON list of pairs
(exit status, what was said) comes out. As for a console script the first place to import from is the folder of this
file, not the working directory. A viewer is interrupted, as by Ctrl-C, when it has started.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib.metadata import entry_points
from pathlib import Path

STARTED = "The viewer has started."
VIEWERS = "nerfstudio.scripts.viewer.run_viewer"
sleep = time.sleep


def sleep_or_end(seconds: float) -> None:
    """Ends a viewer when its last thread begins to wait."""
    if sys._getframe(1).f_globals["__name__"] == VIEWERS:
        print(STARTED, flush=True)
        raise KeyboardInterrupt
    sleep(seconds)


def run(words: list[str]) -> int:
    """The exit status of a command."""
    (script,) = entry_points(group="console_scripts", name=words[0])
    sys.argv = words
    try:
        status = script.load()()
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    return status if isinstance(status, int) else int(status is not None)


def main() -> None:
    """Runs the commands; what they write goes to a file each."""
    commands, results = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    time.sleep = sleep_or_end
    found = []
    for words in commands:
        with tempfile.TemporaryFile() as file:
            kept = [os.dup(stream) for stream in (1, 2)]
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            status = run(words)
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, old in zip((1, 2), kept, strict=True):
                os.dup2(old, stream)
            file.seek(0)
            said = file.read().decode(errors="replace")
            found.append((0 if status == 130 and STARTED in said else status, said))
            results.write_text(json.dumps(found))
    os._exit(0)  # the viewers' servers would be waited for


if __name__ == "__main__":
    main()
