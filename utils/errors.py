"""Errors a user can mend: each message is one sentence that says what is wrong and what to do."""


class UserError(ValueError):
    """A wrong path, flag, file or input; entry points print the message without a traceback and exit with 2."""


ADVICE = "; mend the row or pass --skip-bad-rows."


class BadRowError(UserError):
    """A row of a data file that cannot become a sample.

    Args:
        path: the data file; or the whole message, when a data loader's worker process hands the error on.
        line: line number in it, counted from 1.
        reason: what is wrong, without a full stop.
    """

    def __init__(self, path: str, line: int = 0, reason: str = "") -> None:
        super().__init__(path, line, reason)
        self.path, self.line, self.reason = path, line, reason

    def __str__(self) -> str:
        if not self.line:
            return self.path
        return f"{self.path}, line {self.line}: {self.reason}{ADVICE}"


def one_sentence(error: BaseException) -> str:
    """The error's own message, without the traceback that a worker process puts around it."""
    text = str(error).strip() or type(error).__name__
    last = text.splitlines()[-1]
    return last.split("Error: ", 1)[-1] if "Traceback (most recent call last)" in text else " ".join(text.split())
