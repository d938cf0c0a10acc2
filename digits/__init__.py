"""Digit scenes: small datasets of real handwriting in the released formats, made offline."""

import ofa_names  # noqa: F401  (a user's package of the same name is a sentence)
