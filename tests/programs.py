"""Programs as users start them, in processes of their own: one or several, to their end or killed on the way."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(program: str | Path, *args: object, processes: int = 1, **env: str) -> subprocess.Popen[str]:
    """A running program; a relative path is the repository's, `env` is added to the environment."""
    launcher = [sys.executable]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    return subprocess.Popen(
        [*launcher, str(ROOT / program), *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        # A suite in the background of a script ignores Ctrl-C, and what it starts would as well.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(program: str | Path, *args: object, processes: int = 1, code: int = 0, **env: str) -> str:
    """Output of a finished program, which must succeed (`code` 0) or fail."""
    process = start(program, *args, processes=processes, **env)
    output = process.communicate(timeout=300)[0]
    assert (process.returncode == 0) == (code == 0), output[-3000:]
    return output


def kill_after(file: Path, program: str | Path, *args: object, processes: int = 1, **env: str) -> None:
    """Runs a program until a file appears, then kills all its processes at once."""
    process = start(program, *args, processes=processes, **env)
    deadline = time.monotonic() + 300
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    appeared = file.exists()
    for pid in (process.pid, *_descendants(process.pid)):  # each rank leads a session: there is no common group
        os.kill(pid, signal.SIGKILL)
    output = process.communicate(timeout=60)[0]  # ends when no process is left that could write
    assert appeared, output[-3000:]


def _descendants(pid: int) -> list[int]:
    """Numbers of the processes that a process started, and those that they started."""
    return [one for child in _children(pid) for one in (child, *_descendants(child))]


def _children(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, file.read_text().split())
