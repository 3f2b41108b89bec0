"""Hints of what moves in 2D, and of what is hand: each pixel of a frame yes, no, or unknown.

Hints lie in a store beside features, of the kind "hints", whose rows are pairs of such answers. `planes` says what a
source of one of the two is; `flow`, `masks` and `boxes` are those that there are, and `source` puts both together.
"""
