"""Rows of TSV files -> examples -> samples -> batches; see docs/architecture.md for the path."""

import ofa_names  # noqa: F401  (a user's package of the same name is a sentence)
