"""What of fairseq our training program replaces, for as long as it runs.

Everything else that differs is a subclass (`OFATrainer`) or an import made lean (`lean_imports.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Replacement(NamedTuple):
    """A name of fairseq's that means something of ours.

    Attributes:
        owner: fairseq's module or class. name: the attribute. by: what it is meanwhile.
        line: the line of the owner's file, or of `file`, that this stands for. why: the reason.
        file: the module that the line is in, where it is not the owner's.
    """

    owner: Any
    name: str
    by: Any
    line: str
    why: str
    file: Any = None


@contextmanager
def replaced(*replacements: Replacement) -> Iterator[None]:
    """Inside, each name means ours; afterwards, whatever happened, what it was."""
    stock = [vars(item.owner)[item.name] for item in replacements]
    try:
        for item in replacements:
            setattr(item.owner, item.name, item.by)
        yield
    finally:
        for item, value in zip(replacements, stock, strict=True):
            setattr(item.owner, item.name, value)
