"""Losses as pure functions (`losses.py`) and the thin fairseq criterions that call them."""
