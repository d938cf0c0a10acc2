"""Errors that a user can correct: each message is one sentence that says what is wrong and what to do."""

import errno

SHOWN = 60  # characters of a value that a message quotes
LONGEST = 2000  # characters of a message
NO_ROOM, NOT_ALLOWED = "make room, or choose another place", "choose a place that you may use"
# What to do about an error of the operating system.
SYSTEM_ADVICE = {
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EFBIG: NO_ROOM,
    errno.EACCES: NOT_ALLOWED,
    errno.EPERM: NOT_ALLOWED,
    errno.EROFS: NOT_ALLOWED,
    errno.EPIPE: "the program that read the output has ended",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "end other programs, which keep too many files open",
}


def quoted(value: object) -> str:
    """A value of a user's file as messages show it: as `repr` does, and long ones cut."""
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= SHOWN else f"{value[:SHOWN]!r}... ({len(value):,} characters)"
    return shortened(repr(value), 2 * SHOWN)


def shortened(text: str, limit: int = LONGEST) -> str:
    """A text without its middle if it is longer than `limit` characters: messages end with the advice."""
    return text if len(text) <= limit else f"{text[: limit * 3 // 4]} ... {text[-limit // 4 :]}"


class UserError(ValueError):
    """A wrong path, flag, file or input; entry points print the message without a traceback and exit with 2.

    The message is one line: libraries' errors, which many messages quote, may have several.
    """

    def __str__(self) -> str:
        return shortened(" ".join(super().__str__().splitlines()))


class ItemError(UserError):
    """One of several items cannot be answered; the others can."""


class BadRowError(UserError):
    """A row of a data file that cannot become a sample.

    Args:
        path: the data file; or the whole message, when a data loader's worker process hands the error on.
        place: the row in it, such as `line 3`.
        reason: what is wrong, without a full stop.
    """

    def __init__(self, path: str, place: str = "", reason: str = "") -> None:
        super().__init__(path, place, reason)
        self.path, self.place, self.reason = path, place, reason

    @property
    def fault(self) -> str:
        """The message without advice, for a row that is skipped."""
        return shortened(f"{self.path}, {self.place}: {self.reason}")

    def __str__(self) -> str:
        if not self.place:
            return self.path
        return shortened(f"{self.path}, {self.place}: {self.reason}; correct the row or pass --skip-bad-rows.")


def one_sentence(error: BaseException) -> str:
    """The error's own message, without the traceback that a worker process puts around it; long ones are cut.

    An error of the operating system says which file it is about, if it knows, and what to do.
    """
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return shortened(f"{where}{error.strerror}; {SYSTEM_ADVICE.get(error.errno or 0, 'check the path')}.")
    text = str(error).strip() or type(error).__name__
    last = text.splitlines()[-1]
    in_worker = "Traceback (most recent call last)" in text
    return shortened(last.split("Error: ", 1)[-1] if in_worker else " ".join(text.split()))
