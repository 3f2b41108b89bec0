"""A procedural egocentric kitchen with ground truth, drawn by a small ray caster in NumPy."""
