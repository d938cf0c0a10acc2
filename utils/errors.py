"""Errors a user can mend: each message is one sentence that says what is wrong and what to do."""


class UserError(ValueError):
    """A wrong path, flag, file or input; entry points print the message without a traceback and exit with 2."""


class BadRowError(UserError):
    """A row of a data file that cannot become a sample.

    Args:
        path: the data file.
        line: line number in it, counted from 1.
        reason: what is wrong, without a full stop.
    """

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(path, line, reason)
        self.path, self.line, self.reason = path, line, reason

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.reason}; mend the row or pass --skip-bad-rows."
