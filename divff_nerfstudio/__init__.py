"""Dynamic image-video feature fields (DIV-FF) for nerfstudio."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", False):
    # `python -m divff_nerfstudio.…` would import from the working directory, which may be a stranger's folder.
    del sys.path[0]

# Not before the lines above.
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from divff_nerfstudio.evaluation.door import Scene, open_run

__all__ = ["Scene", "open_run"]


def __getattr__(name: str) -> Any:
    """The door for notebooks, imported when it is asked for: nerfstudio imports this package at every start."""
    if name in __all__:
        from divff_nerfstudio import announcements

        with announcements.left_out():
            from divff_nerfstudio.evaluation import door

        return getattr(door, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
