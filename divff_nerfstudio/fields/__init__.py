"""The three radiance fields, their encodings and time codes, and the heads that carry features."""
