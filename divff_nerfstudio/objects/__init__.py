"""Things over time: stored segments of all frames, grouped by features and place, and what happens to them."""
