"""Dataclass fields that double as command line flags."""

from dataclasses import field
from typing import Any


def option(default: Any, text: str) -> Any:
    """A dataclass field with its help text; fairseq's flag generator reads both."""
    return field(default=default, metadata={"help": text})
