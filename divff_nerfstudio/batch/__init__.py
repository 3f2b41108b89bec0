"""Many scenes as one job: a manifest names them, an engine runs them, and what goes wrong with one stops no other."""
