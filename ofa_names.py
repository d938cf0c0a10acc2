"""Importing this checks that OFA's packages are the ones that Python finds by their common names.

`utils`, `data` and `models` are names that a user's project may have too. Python takes what was imported already, or
what comes first on `sys.path`; without this check the first sign of a mix-up is an ImportError deep inside.
"""

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent
CORE = ("utils", "data", "metrics", "models", "digits")
PLUGIN = ("criterions", "tasks")  # training and evaluation need these as well


class NameClashError(ImportError):
    """A package or module of the user's has the name of one of OFA's, and Python finds it first."""


def check(names: Iterable[str]) -> None:
    """Raises NameClashError for the first of these top-level names that means something else than OFA's package.

    Where one of OFA's own programs is running, it ends with that sentence and exit code 2 instead.
    """
    for name in names:
        place = _place(name)
        if place is None or _same(place, ROOT / name):
            continue
        message = (
            f"Python takes {name} from {place} and not from {ROOT}, where OFA is: rename yours, or put {ROOT} first in "
            f"sys.path before anything imports {name}."
        )
        if program := _running_program():
            print(f"{program}: error: {message}", file=sys.stderr)
            raise SystemExit(2)
        raise NameClashError(message, name=name)


def _place(name: str) -> Path | None:
    """Folder of the package, or file of the module, that `import name` gives; None if there is neither."""
    module = sys.modules.get(name)
    if module is not None:
        folders, file = getattr(module, "__path__", None), getattr(module, "__file__", None)
    elif (spec := find_spec(name)) is not None:
        folders, file = spec.submodule_search_locations, spec.origin
    else:
        return None
    for place in (*(folders or ()), file):
        return Path(place) if place else None
    return None


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _running_program() -> str | None:
    """What messages call the program of OFA that Python was started with; None if it is another one."""
    if sys.argv[:1] == ["-m"]:  # Python is still looking for the module that it shall run
        return "ofa"
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(file).name if file and _same(Path(file).resolve().parent, ROOT) else None


def _interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a program imports what it needs, which takes seconds, is one line too; Python ends with 130."""
    if issubclass(kind, KeyboardInterrupt):
        module = getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", None)
        print(f"{f'python -m {module}' if module else _running_program()}: interrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


check(CORE)
if _running_program() and sys.excepthook is sys.__excepthook__:
    sys.excepthook = _interrupted
