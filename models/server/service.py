"""A predictor behind a queue: requests are checked in a few threads, and answered in batches by one.

No HTTP library here; `models/server/app.py` puts HTTP around it. Everything but checks and answers runs in one event
loop.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.vqa_gen import VqaGenData
from models.predictor import OFAPredictor
from models.predictor.fitting import DoesNotFitError, Fitting
from models.server.batching import Batcher, FullError, Places
from models.server.methods import METHODS, Method, Question
from models.server.metrics import Metrics
from utils.errors import UserError

AT_ONCE = 16  # requests of the largest size that may be in memory at a time
THREADS = 4  # that decode images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        batch_size: requests answered together. wait: seconds that one waits for others. queue: requests at a time.
        max_bytes: of a request. timeout: seconds from the head of a request to its answer.
        api_key: what clients must send; None = nothing.
    """

    batch_size: int = 16
    wait: float = 0.005
    queue: int = 128
    max_bytes: int = 16 * 2**20
    timeout: float = 60.0
    api_key: str | None = None


class Refused(Exception):
    """A request without an answer.

    Attributes:
        status: of HTTP. message: a sentence. busy: whether it is worth trying again soon.
    """

    def __init__(self, status: int, message: str, busy: bool = False) -> None:
        super().__init__(status, message)
        self.status, self.message, self.busy = status, message, busy


def check_files(predictor: OFAPredictor) -> None:
    """Reads the answers and the VQGAN that a predictor was loaded with; UserError where a request would have failed."""
    if "ans2label_file" in predictor.description.given:
        config = predictor.description.config(VqaGenData, "vqa_gen")
        predictor.description.answers(config, "vqa_gen", "candidates")
    if predictor.vqgan and predictor.vocab.num_codes:
        predictor.painter(*predictor.vqgan)


class Service:
    """Answers requests.

    Attributes:
        name: of the model. stopping: whether no request is taken any more. held: bytes of requests in memory.
        reading: tasks that read requests.
    """

    def __init__(self, predictor: OFAPredictor, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.name = Path(predictor.description.source).name
        self.stopping, self.broken, self.held = False, False, 0
        self.reading: set[asyncio.Task[Any] | None] = set()
        self.fitting = Fitting(predictor, lambda line: print(line, file=sys.stderr))
        self.places = Places(limits.queue)
        self.pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="images")
        self.batcher = Batcher(self._answers, limits.batch_size, limits.wait)
        self.metrics = Metrics(lambda: self.batcher.waiting, lambda: self.places.taken)

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return not self.stopping and not self.broken and self.batcher.alive

    def check_open(self) -> None:
        """Raises Refused where a request would not be answered, before it is read."""
        if self.stopping:
            raise Refused(503, "The server is stopping: ask another one, or this one later.", busy=True)
        if not self.ready:
            raise Refused(503, "The model has failed: the server must be started again.")
        if self.places.taken >= self.places.capacity:
            raise _full()

    def hold(self, size: int) -> None:
        """Counts bytes of a request (negative: gives them back); Refused where too many are held."""
        if size > 0 and self.held + size > max(AT_ONCE, 2) * self.limits.max_bytes:
            raise _full()
        self.held += size

    async def answer(self, method: Method, read: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The record of a request; cancelling it drops the request unless it is being computed.

        Args:
            read: the values of its fields, called in another thread.

        Raises Refused, and UserError for what is wrong with the request.
        """
        try:
            with self.places:
                loop = asyncio.get_running_loop()
                question = await loop.run_in_executor(self.pool, lambda: method.question(self.predictor, read()))
                job = self.batcher.submit(question.key, question)
                try:
                    found: dict[str, Any] = await asyncio.wrap_future(job.future)
                    return found
                finally:
                    job.gone = True
        except FullError:
            raise _full() from None

    def stop(self) -> None:
        """Takes no more requests; those that are under way are finished."""
        self.stopping = True

    def stop_reading(self) -> None:
        """Cancels what is not read to its end; in the event loop."""
        for task in self.reading:
            if task is not None:
                task.cancel()

    def close(self) -> bool:
        """Ends the threads when what is queued is answered; False if the model does not come to an end."""
        self.stopping = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        return self.batcher.close(1.0)

    def _answers(self, key: tuple[str, str], questions: list[Question]) -> list[dict[str, Any]]:
        """In the model's thread."""
        name = key[0]
        self.predictor.batch_size = self.limits.batch_size  # a batch that did not fit says little about the next one
        self.metrics.batch(name, len(questions))
        try:
            return self.fitting(lambda: METHODS[name].answers(self.predictor, questions))
        except DoesNotFitError:
            raise Refused(503, "The request does not fit into the memory of the server: ask for less.") from None
        except UserError:
            raise
        except Exception as error:
            # After an error of its own a GPU computes nothing any more in this process.
            self.broken = self.broken or "CUDA error" in str(error) or "device-side assert" in str(error)
            raise


def _full() -> Refused:
    return Refused(429, "Too many requests are waiting: try again in a second.", busy=True)
