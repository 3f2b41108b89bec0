"""What a process of nerfstudio's lacks for our methods; given to it when one of them is set up, not at import."""

from __future__ import annotations

from divff_nerfstudio.faults import show_any_text, tell_uncaught
from divff_nerfstudio.ffmpeg import ensure_ffmpeg


def prepare_process() -> None:
    """Puts an ``ffmpeg`` on PATH where there is none, and has errors that a user can mend told in a sentence.

    Names of any letters are shown, whatever the output's encoding is.
    """
    ensure_ffmpeg()
    show_any_text()
    tell_uncaught()
