"""Places for what is computed or fetched once and not kept in a scene's folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def is_writable(folder: Path) -> bool:
    """Whether files may be made in `folder`, by its mode bits, too: an administrator passes every other check."""
    return folder.is_dir() and bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)


def user_cache_dir(scene_root: Path | str) -> Path:
    """Place for what is computed from a scene whose own folder must not be written to.

    It lies in `_cache_base` and is not made here.

    Args:
        scene_root: Folder of the scene; two scenes of one name in different places get different folders.
    """
    root = Path(scene_root).resolve()
    return _cache_base() / f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"


def features_dir(scene_root: Path) -> Path:
    """Place for the features of a scene: in its folder, or in `user_cache_dir` where that must not be written to."""
    return (scene_root if is_writable(scene_root) else user_cache_dir(scene_root)) / "features"


def weights_dir() -> Path:
    """Place for weights of other people's models, ``weights`` in `_cache_base`. It is not made here."""
    return _cache_base() / "weights"


def _cache_base() -> Path:
    """``$DIVFF_CACHE_DIR``, else ``$XDG_CACHE_HOME/divff``, else ``~/.cache/divff``.

    Where a home cannot be written to, it is in the folder for temporary files.
    """
    chosen = os.environ.get("DIVFF_CACHE_DIR")
    if chosen:
        return Path(chosen)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    existing = next((folder for folder in (home, *home.parents) if folder.exists()), home)
    return (home if is_writable(existing) else Path(tempfile.gettempdir())) / "divff"
