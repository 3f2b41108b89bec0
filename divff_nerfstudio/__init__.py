"""Dynamic image-video feature fields (DIV-FF) for nerfstudio."""

__version__ = "0.1.0"
