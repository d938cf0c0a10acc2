"""Logging of programs that may run inside another one (a notebook, a test): the caller's root logger comes back."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def kept_root_logger() -> Iterator[logging.Logger]:
    """The root logger, whose level and handlers are at the end what they were; handlers that came are closed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield root
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def program_logging(log_file: str | None) -> Iterator[None]:
    """Log lines go to stdout and, appended, to the file, beside the caller's handlers; $LOGLEVEL is the level (INFO).

    The file's folder is made.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if log_file:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file))
    line = logging.Formatter(
        "%(asctime)s - %(filename)s[line:%(lineno)d] - %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S"
    )
    with kept_root_logger() as root:
        for handler in handlers:
            handler.setFormatter(line)
            root.addHandler(handler)
        root.setLevel(os.environ.get("LOGLEVEL", "INFO").upper())
        yield
