"""Makes the ffmpeg program of the `imageio-ffmpeg` package findable: nerfstudio's renderers look for it on PATH."""

from __future__ import annotations

import os
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path


def ensure_ffmpeg() -> str | None:
    """Puts an `ffmpeg` onto the PATH of this process and its children, if none is there yet.

    ``ns-render`` starts the program of that name, and stops where there is none. The package `imageio-ffmpeg` brings
    one under another name; a link with the right one is kept in the user's cache. Nothing is imported where ffmpeg is
    installed.

    Returns:
        The program's path, or None where there is none: then only videos cannot be written.
    """
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg

        program = Path(imageio_ffmpeg.get_ffmpeg_exe()).resolve()
        folder = _linked(program)
    except (ImportError, OSError, RuntimeError):
        return None
    os.environ["PATH"] = os.pathsep.join(part for part in (os.environ.get("PATH"), str(folder)) if part)
    return shutil.which("ffmpeg")


def _linked(program: Path) -> Path:
    """The folder that holds a link named `ffmpeg` to `program`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "divff" / f"bin-{sha256(str(program).encode()).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="divff-ffmpeg-"))
    link = folder / f"ffmpeg{program.suffix if program.suffix == '.exe' else ''}"
    if not link.exists():
        fresh = folder / f".{link.name}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        try:
            fresh.symlink_to(program)
        except OSError:
            shutil.copy2(program, fresh)
        fresh.replace(link)
    return folder
