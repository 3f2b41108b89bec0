"""Dynamic image-video feature fields (DIV-FF) for nerfstudio."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", False):
    # `python -m divff_nerfstudio.…` would import from the working directory, which may be a stranger's folder.
    del sys.path[0]
