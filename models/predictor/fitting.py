"""Calls of a predictor that go on in smaller batches when one does not fit into memory."""

from collections.abc import Callable
from typing import TypeVar

import torch

from models.predictor.predictor import OFAPredictor
from utils.errors import UserError

R = TypeVar("R")


class DoesNotFitError(UserError):
    """Not even one row fits into memory."""


class Fitting:
    """Runs calls.

    Args:
        say: gets a sentence when a batch does not fit for the first time.
    """

    def __init__(self, predictor: OFAPredictor, say: Callable[[str], None]) -> None:
        self.predictor, self.say, self.halved = predictor, say, False

    def __call__(self, call: Callable[[], R]) -> R:
        """What the call returns; DoesNotFitError if not even one row fits."""
        while True:
            try:
                return call()
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
            size = self.predictor.batch_size
            if size == 1:
                advice = "choose a smaller model or --dtype bfloat16"
                raise DoesNotFitError(f"One item alone does not fit into memory: {advice}.")
            self.predictor.batch_size = size // 2
            if not self.halved:
                self.halved = True
                self.say(f"--batch-size {size} does not fit into memory: going on with smaller batches.")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
