"""What the field is held against; another one is a class derived from `base.Baseline`."""
