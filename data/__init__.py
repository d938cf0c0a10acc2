"""Rows of TSV files -> examples -> samples -> batches; see docs/architecture.md for the path."""
