"""Programs as users start them, in processes of their own: one or several, to their end or killed on the way.

Starting Python and importing its packages takes longer than most of these runs do. Processes are therefore forked from
one that has imported them and done nothing else (`tests/imported.py`); `torchrun=True` starts them as users do.
"""

import ast
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# A model whose checkpoints take a twentieth of the demo's time to write.
SMALL = ["--arch=ofa_demo", "--max-source-positions=128", "--max-target-positions=128"]
SMALL += [
    f"--{side}-{size}"
    for side in ("encoder", "decoder")
    for size in ("layers=1", "embed-dim=32", "ffn-embed-dim=64", "attention-heads=4")
]
forks: Any = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["tests.imported"])


class Running:
    """The processes of a program, and what they have written."""

    def __init__(self, processes: list[Any], output: Path) -> None:
        self.processes, self._output = processes, output
        self.pid: int = processes[0].pid

    @property
    def returncode(self) -> int | None:
        """What the first that failed ended with, 0 when all have ended, None until then."""
        codes = [process.exitcode for process in self.processes]
        failed = [code for code in codes if code]
        return failed[0] if failed else None if None in codes else 0

    def poll(self) -> int | None:
        """As `returncode`."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal to all that run."""
        for process in self.processes:
            if process.exitcode is None:
                os.kill(process.pid, number)

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """What all have written when they have ended; after a failure the others are ended, as torchrun does."""
        deadline, told = time.monotonic() + timeout, False
        while running := [process.sentinel for process in self.processes if process.exitcode is None]:
            if self.returncode and not told:
                time.sleep(1)
                self.send_signal(signal.SIGTERM)
                told = True
            wait(running, timeout=1)
            if time.monotonic() > deadline:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired("program", timeout, self._output.read_bytes())
        for process in self.processes:
            process.join()
        return self._output.read_text(errors="replace"), None


def start(
    program: str | Path, *args: object, processes: int = 1, torchrun: bool = False, **env: str
) -> "Running | subprocess.Popen[str]":
    """A running program; a relative path is the repository's, `env` is added to the environment."""
    argv, env = [str(ROOT / program), *map(str, args)], {**os.environ, "OMP_NUM_THREADS": "1", **env}
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    if torchrun:
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
        return subprocess.Popen(
            [sys.executable, *launcher, *argv],
            cwd=ROOT,
            env=env,
            # A suite in the background of a script ignores Ctrl-C, and what it starts would as well.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    group: dict[str, str] = {}
    if processes > 1:
        group = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    descriptor, name = tempfile.mkstemp(prefix="ofa_test_")
    os.close(descriptor)
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if group else {}
        started.append(forks.Process(target=_run_program, args=(argv, {**env, **group, **own}, name)))
        started[-1].start()
    return Running(started, Path(name))


def _run_program(argv: list[str], env: dict[str, str], output: str) -> None:
    """In a forked process: a program of the repository, whose output goes to a file."""
    with open(output, "ab") as file:
        _become_python(argv, env, ROOT, (0, file.fileno(), file.fileno()))


def _become_python(argv: list[str], env: dict[str, str], folder: Path, files: Sequence[int]) -> None:
    """In a forked process: what the interpreter does with `FILE`, `-m MODULE` or `-c CODE` and the words behind it."""
    import atexit
    import runpy
    import traceback

    import torch

    if "OMP_NUM_THREADS" in env:  # torch has read the one of the tests
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    multiprocessing.set_start_method("fork", force=True)  # as in a process that was not forked
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # which may be another one in this environment
    os.chdir(folder)
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r", buffering=1, closefd=False) for n in range(3))
    place = 0 if argv[0] not in ("-c", "-m") else 1
    sys.argv[:], sys.path[0] = argv[place:], str(folder if place else Path(argv[0]).resolve().parent)
    try:
        if argv[0] == "-c":
            exec(argv[1], {"__name__": "__main__"})
        elif argv[0] == "-m":
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()


# Asks `_serve` to run what it was asked to run, with its own files, and ends as that does.
CLIENT = """#!{python} -IS
import os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [b"."], [0, 1, 2])
server.sendall(repr((sys.argv, dict(os.environ), os.getcwd())).encode())
server.shutdown(socket.SHUT_WR)
answers = server.makefile()
program = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(program, number))
code = int(answers.readline())
sys.exit(code if code >= 0 else 128 - code)
"""


@cache
def interpreter() -> str:
    """An interpreter for scripts (`OFA_PYTHON`) that has imported our packages: its programs are forks as well."""
    folder = Path(tempfile.mkdtemp(prefix="ofa_python_"))
    client, address = folder / "python", str(folder / "socket")
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    ready = forks.Event()
    forks.Process(target=_serve, args=(address, ready), daemon=True).start()
    assert ready.wait(60)
    return str(client)


def _serve(address: str, ready: Any) -> None:
    """Runs what clients ask for, each in two forks: one that is the program, and one that waits for it."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # programs have workers
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        ready.set()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection = listener.accept()[0]
            if not os.fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                break
            connection.close()
    files = socket.recv_fds(connection, 1, 3)[1]
    (client, *argv), env, folder = ast.literal_eval(connection.makefile().read())
    if not (program := os.fork()):
        connection.close()
        sys.executable = client
        _become_python(argv, env, Path(folder), files)
        os._exit(0)
    connection.sendall(b"%d\n" % program)
    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]))
    os._exit(0)


def run(
    program: str | Path, *args: object, processes: int = 1, code: int = 0, torchrun: bool = False, **env: str
) -> str:
    """Output of a finished program, which must succeed (`code` 0) or fail."""
    process = start(program, *args, processes=processes, torchrun=torchrun, **env)
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
    first = [one.pid for one in getattr(process, "processes", [process])]
    for pid in [*first, *(child for one in first for child in _descendants(one))]:
        os.kill(pid, signal.SIGKILL)
    output = process.communicate(timeout=60)[0]  # ends when no process is left that could write
    assert appeared, output[-3000:]


def _descendants(pid: int) -> list[int]:
    """Numbers of the processes that a process started, and those that they started."""
    return [one for child in _children(pid) for one in (child, *_descendants(child))]


def _children(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, file.read_text().split())
