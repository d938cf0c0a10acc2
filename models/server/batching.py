"""Batches of requests that come one by one, from many threads or tasks, for a model that one thread runs.

No HTTP here: a job is a key and an item, and jobs of one key can be answered together.
"""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


class FullError(Exception):
    """There are as many requests as are taken at once."""


class Places:
    """How many requests may be under way; `with places:` takes one of them. For one thread.

    Raises FullError on entering when all are taken.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.taken = capacity, 0

    def __enter__(self) -> None:
        if self.taken >= self.capacity:
            raise FullError
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        self.taken -= 1


@dataclass(eq=False)
class Job:
    """A request.

    Attributes:
        key: jobs of equal keys are answered together. arrived: on the clock `time.monotonic`.
        gone: set when nobody waits for the answer any more; such a job is dropped before it costs anything.
        future: gets the answer, or what `answer` raised for it.
    """

    key: Hashable
    item: Any
    arrived: float = field(default_factory=time.monotonic)
    gone: bool = False
    future: "Future[Any]" = field(default_factory=Future)


class Batcher:
    """A thread that answers jobs, the oldest first and with it those of its key.

    Args:
        answer: (key, items) -> an answer for each. Where it raises, the items are answered one by one, so that one
            that cannot be answered does not spoil the others.
        size: items at most in a batch. wait: seconds that a job may wait for others to come.
    """

    def __init__(self, answer: Callable[[Any, list[Any]], Sequence[Any]], size: int, wait: float) -> None:
        self.answer, self.size, self.wait = answer, size, wait
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are still answered."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Number of jobs that nobody has begun to answer."""
        return len(self._jobs)

    def submit(self, key: Hashable, item: Any) -> Job:
        """Queues a job."""
        job = Job(key, item)
        job.future.set_running_or_notify_cancel()  # an asyncio future around it must not cancel it
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            self._jobs.append(job)
            self._changed.notify()
        return job

    def close(self, timeout: float) -> bool:
        """Takes no more jobs, and waits until the queued ones are answered; False if that takes longer."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while jobs := self._next():
            self._answer(jobs)

    def _next(self) -> list[Job]:
        """The jobs of the next batch; [] when closed and empty."""
        with self._changed:
            while True:
                self._jobs = [job for job in self._jobs if not job.gone]
                if not self._jobs:
                    if self._closing:
                        return []
                    self._changed.wait()
                    continue
                oldest = self._jobs[0]
                batch = [job for job in self._jobs if job.key == oldest.key][: self.size]
                left = oldest.arrived + self.wait - time.monotonic()
                if len(batch) == self.size or left <= 0 or self._closing:
                    self._jobs = [job for job in self._jobs if job not in batch]
                    return batch
                self._changed.wait(left)

    def _answer(self, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if not job.gone]
        if not jobs:
            return
        try:
            pairs = list(zip(jobs, self.answer(jobs[0].key, [job.item for job in jobs]), strict=True))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:
                for job in jobs:
                    self._answer([job])
            return
        for job, answer in pairs:
            job.future.set_result(answer)
