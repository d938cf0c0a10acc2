"""Digit scenes: small data sets of real handwriting in the released formats, made offline."""
