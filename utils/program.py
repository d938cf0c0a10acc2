"""How programs end when something goes wrong: one sentence and code 2, 130 after Ctrl-C, 143 after SIGTERM."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from utils.errors import UserError, one_sentence
from utils.options import program_name

Main = Callable[..., int]


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does: what it was writing is removed on the way."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside, a first SIGTERM raises Terminated, and a second ends the process.

    Only in the main thread, and where nobody handles or ignores SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # A scheduler sends SIGTERM to a data loader's workers too; that they end is no error, up to the exit.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except RuntimeError as error:  # a data loader's, if its worker has got the signal before this process
        if "killed by signal: Terminated" in str(error):
            time.sleep(1)
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Interruption:
    """Inside, a first Ctrl-C raises KeyboardInterrupt and is remembered (`asked`); a second one ends the process.

    A process that was started to ignore Ctrl-C (in the background of a script) keeps ignoring it. What Python ignores,
    an exception in a finalizer or while a process is forked, is raised again.
    """

    asked = False

    def __enter__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._before = signal.getsignal(signal.SIGINT) if main else None
        self._hook = sys.unraisablehook
        if self._before not in (None, signal.SIG_IGN):
            signal.signal(signal.SIGINT, self._stop)
            sys.unraisablehook = self._again

    def _stop(self, *_: Any) -> None:
        self._end(KeyboardInterrupt)

    def _end(self, kind: type[BaseException]) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise kind

    def _again(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._hook(unraisable)
        else:  # not at once: what ignored this one may not have ended yet
            kind = unraisable.exc_type
            signal.signal(signal.SIGALRM, lambda *_: self._end(kind))
            signal.setitimer(signal.ITIMER_REAL, 0.05)

    def __exit__(self, *_: Any) -> None:
        sys.unraisablehook = self._hook
        if self._before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGINT, self._before)


def exit_code(error: KeyboardInterrupt) -> int:
    """What a shell sees of a program that a signal has ended."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


def program(usual: str, resume: str = "") -> Callable[[Main], Main]:
    """Decorates `main(argv)`, which raises UserError or OSError for what the user can change.

    Args:
        usual: the program as it is usually started, for messages. resume: what to do after Ctrl-C or SIGTERM, if work
            is kept.
    """

    def decorate(main: Main) -> Main:
        @wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            try:
                with Interruption(), sigterm_interrupts():
                    return main(argv)
            except (UserError, OSError) as error:
                print(f"{program_name(usual)}: error: {one_sentence(error)}", file=sys.stderr)
                return 2
            except KeyboardInterrupt as error:
                print(f"{program_name(usual)}: interrupted. {resume}".rstrip(), file=sys.stderr)
                return exit_code(error)

        return run

    return decorate
