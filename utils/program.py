"""How programs end when something goes wrong: one sentence and code 2, or 130 after Ctrl-C."""

import sys
from collections.abc import Callable, Sequence
from functools import wraps

from utils.errors import UserError, one_sentence
from utils.options import program_name

Main = Callable[..., int]


def program(usual: str, resume: str = "") -> Callable[[Main], Main]:
    """Decorates `main(argv)`, which raises UserError or OSError for what the user can change.

    Args:
        usual: the program as it is usually started, for messages. resume: what to do after Ctrl-C, if work is kept.
    """

    def decorate(main: Main) -> Main:
        @wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv)
            except (UserError, OSError) as error:
                print(f"{program_name(usual)}: error: {one_sentence(error)}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print(f"{program_name(usual)}: interrupted. {resume}".rstrip(), file=sys.stderr)
                return 130

        return run

    return decorate
