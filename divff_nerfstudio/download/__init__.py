"""Fetching what is public of EPIC-Diff and of the models that belong to it."""
