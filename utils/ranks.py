"""One command in several processes: `--processes N` starts them here, torchrun on several machines."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import IO, Any

from utils.errors import UserError
from utils.program import Terminated, exit_code

PARENT = "OFA_PARENT_PROCESS"  # environment variable: who started this process
LONG = timedelta(days=100)  # a process may have much more to do than another


class Ranks:
    """This process among those of a command, which only tell each other how far they are.

    Attributes:
        rank, world: number of this process, and of all. local: its number on this machine.
    """

    def __init__(self) -> None:
        from torch.distributed.rendezvous import rendezvous  # a wrong command line shall not wait for it

        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local = int(os.environ.get("LOCAL_RANK", self.rank))
        with _connected():
            self._store, *_ = next(rendezvous("env://", timeout=LONG))

    def ready(self) -> None:
        """The first process says that the others may begin: what is wrong for all is said once."""
        self._store.set("ofa/ready", "1")

    def wait(self) -> None:
        """Waits for the first process."""
        self._wait("ofa/ready")

    def _wait(self, key: str) -> None:
        """Waits for a value, so that signals and the end of `start` are noticed: the store's own wait is deaf."""
        while True:
            with _connected():
                if self._store.check([key]):
                    return
            _check_parent()
            time.sleep(0.1)

    def count(self, more: int) -> int:
        """Adds to a number that all processes share; the sum."""
        _check_parent()
        with _connected():
            return int(self._store.add("ofa/count", more))

    def finish(self, summary: str) -> list[str]:
        """Waits for all processes; what each of them passed. The others than the first do not wait and get nothing."""
        with _connected():
            self._store.set(f"ofa/summary/{self.rank}", summary)
        if self.rank:
            return []
        keys = [f"ofa/summary/{rank}" for rank in range(self.world)]
        for key in keys:
            self._wait(key)
        with _connected():
            return [str(self._store.get(key).decode()) for key in keys]


def _check_parent() -> None:
    """Ends this process if `start` was killed, since nobody else would stop it."""
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        raise Terminated


@contextmanager
def _connected() -> Iterator[None]:
    """Ends this process with code 2, without a word, if the first one is gone: that one said why."""
    from torch.distributed import DistError

    try:
        yield
    except DistError:
        raise SystemExit(2) from None


def are_several() -> bool:
    """Whether this process is one of several that torchrun or `start` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def start(program: Sequence[str], count: int) -> int:
    """Runs a program as `count` processes that share the cores; the first one's exit code, or of one that failed.

    Raises UserError if a process was killed.
    """
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), PARENT: str(os.getpid())}
    # The library itself says nothing when the first process ends before another.
    shared = {"WORLD_SIZE": str(count), "TORCH_CPP_LOG_LEVEL": "FATAL", **place}
    processes: list[subprocess.Popen[bytes]] = []
    listeners: list[threading.Thread] = []
    try:
        for rank in range(count):
            environment = {
                "OMP_NUM_THREADS": threads,
                **os.environ,
                **shared,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            }
            # Signals of the terminal reach this process only, which passes them on.
            quiet: Any = subprocess.PIPE if rank else None
            processes.append(subprocess.Popen(program, env=environment, stderr=quiet, start_new_session=True))
            if rank:
                listeners.append(threading.Thread(target=_listen, args=(processes[-1].stderr,), daemon=True))
                listeners[-1].start()
        code = _code(processes)
    except KeyboardInterrupt as error:
        return exit_code(error)
    finally:
        _stop(processes)
        for listener in listeners:
            listener.join()
    if code < 0:
        raise UserError(f"A process was killed by {signal.Signals(-code).name}: rerun the same command to resume.")
    return code


def _code(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits until all have ended, or one of them with an error."""
    while True:
        codes = [process.poll() for process in processes]
        if failed := [code for code in codes if code not in (None, 0, 1)]:
            return int(failed[0] or 0)
        if None not in codes:
            return int(codes[0] or 0)
        time.sleep(0.05)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM for those that run; SIGKILL ten seconds later."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listen(stderr: "IO[bytes] | None") -> None:
    """Passes on what a process says, but for its end by a signal, which the first process reports."""
    assert stderr is not None
    for line in stderr:
        if b": interrupted." not in line:
            sys.stderr.write(line.decode(errors="replace"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
