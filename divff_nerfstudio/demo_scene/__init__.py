"""A procedural egocentric kitchen with ground truth, drawn by a small ray caster in NumPy."""

from divff_nerfstudio.demo_scene.command import DemoSceneConfig, DemoSceneError

__all__ = ["DemoSceneConfig", "DemoSceneError"]
