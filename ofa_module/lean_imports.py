"""Keeps fairseq's own tasks and models, and torch's compiler, from being imported by runs that do not use them.

`import fairseq` imports everything that can be registered: 37 tasks, 61 models and scikit-learn, which takes longer
than all that a run of ours needs. Imported from here, fairseq finds these by name when somebody asks for them, so
that each --task, --arch and --criterion is known and works as before. The stock lines this stands for:

- end of fairseq/tasks/__init__.py:  `import_tasks(tasks_dir, "fairseq.tasks")`
- end of fairseq/models/__init__.py: `import_models(models_dir, "fairseq.models")`
- fairseq/criterions/sentence_prediction.py: `from sklearn.metrics import f1_score`, `from scipy.stats import pearsonr`
- fairseq/logging/progress_bar.py: `from torch.utils.tensorboard import SummaryWriter`
- fairseq/data/plasma_utils.py: `import pyarrow.plasma`, which pyarrow lacks since its version 12

Where fairseq was imported before (`fairseq-train --user-dir ofa_module`), all of it is there and nothing is done.

torch imports its compiler (`torch._dynamo`, two seconds) to exempt the methods of every optimizer from compilation, as
soon as there is an optimizer, though nothing is compiled: see `spare_compiler`.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, KeysView
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.files import read_text

PACKAGES = ("fairseq.tasks", "fairseq.models")  # whose modules wait until somebody asks for a name
# Whose functions are imported when they are called, and the package that each needs.
LIBRARIES = {"sklearn.metrics": "sklearn", "scipy.stats": "scipy", "torch.utils.tensorboard": "tensorboard"}
# A name is given as `@register_task("name"...)`, `@register_model("name"...)` or
# `@register_model_architecture("model", "name")`; a model with a data class is an architecture too.
_TASK = re.compile(r'@register_task\(\s*"([^"]+)"')
_MODEL = re.compile(r'@register_model\(\s*"([^"]+)"')
_ARCHITECTURE = re.compile(
    r'@register_model_architecture\(\s*(?:model_name=)?"[^"]+",\s*(?:arch_name=)?"([^"]+)"'
    r'|@register_model\(\s*"([^"]+)",\s*dataclass='
)


def import_fairseq() -> None:
    """Imports fairseq, lean if it is the first import."""
    if "fairseq" in sys.modules:
        return
    with _without_own_modules(), _without_libraries():
        importlib.import_module("fairseq")
    tasks, models = (sys.modules[name] for name in PACKAGES)
    _make_lazy(tasks, ("TASK_REGISTRY", "TASK_DATACLASS_REGISTRY"), _TASK)
    _make_lazy(models, ("MODEL_REGISTRY", "MODEL_DATACLASS_REGISTRY"), _MODEL)
    _make_lazy(models, ("ARCH_MODEL_REGISTRY", "ARCH_MODEL_NAME_REGISTRY", "ARCH_CONFIG_REGISTRY"), _ARCHITECTURE)


def spare_compiler() -> None:
    """Says of each method of optimizers that it is its own uncompiled form, which torch would import its compiler for.

    The lines this stands for are at the end of torch/_compile.py: `disable_fn = torch._dynamo.disable(fn, ...)`,
    `fn.__dynamo_disable = disable_fn`. Without such lines in another version of torch it changes nothing.
    """
    optimizer = importlib.import_module("torch.optim").Optimizer
    for method in vars(optimizer).values():
        plain = getattr(method, "__wrapped__", None)
        if inspect.isfunction(plain) and not hasattr(plain, "__dynamo_disable"):
            plain.__dynamo_disable = plain  # type: ignore[attr-defined]


class LazyRegistry(dict[str, Any]):
    """A registry of fairseq's that imports a module when one of its names is asked for.

    Args:
        loaded: what is registered already. names: the modules of all names of fairseq's own.
    """

    def __init__(self, loaded: dict[str, Any], names: Callable[[], dict[str, str]]) -> None:
        super().__init__(loaded)
        self._names = names

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or self._import(name)

    def __missing__(self, name: str) -> Any:
        if not self._import(name):
            raise KeyError(name)
        return self[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def __iter__(self) -> Iterator[str]:
        """All names, imported or not; also the few of models and tasks without a data class."""
        return iter(dict.fromkeys([*self._names(), *super().__iter__()]))

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """All names, imported or not."""
        return KeysView(self)

    def _import(self, name: object) -> bool:
        """Whether fairseq has the name; its module is imported, unless that is under way."""
        module = self._names().get(str(name))
        if module is None or module in sys.modules:
            return False
        importlib.import_module(module)
        return super().__contains__(name)


def _make_lazy(package: ModuleType, registries: tuple[str, ...], pattern: re.Pattern[str]) -> None:
    @cache
    def names() -> dict[str, str]:
        return _registered(package, pattern)

    for registry in registries:
        setattr(package, registry, LazyRegistry(getattr(package, registry), names))


def _registered(package: ModuleType, pattern: re.Pattern[str]) -> dict[str, str]:
    """Names that the sources of a package register, and their modules."""
    folder = Path(package.__path__[0])
    found = {}
    for path in sorted(folder.rglob("*.py")):
        module = ".".join([package.__name__, *path.relative_to(folder).with_suffix("").parts])
        for match in pattern.finditer(read_text(path)):
            found[match[match.lastindex or 0]] = module.removesuffix(".__init__")
    return found


@contextmanager
def _without_own_modules() -> Iterator[None]:
    """fairseq lists the folders of tasks and models to import what is in them: here they are empty."""
    spec = find_spec("fairseq")
    root = os.path.dirname(spec.origin or "") if spec else ""
    hidden = {os.path.join(root, *name.split(".")[1:]) for name in PACKAGES}
    listdir = os.listdir

    def visible(path: Any = ".") -> list[Any]:
        return [] if path in hidden else listdir(path)

    os.listdir = visible
    try:
        yield
    finally:
        os.listdir = listdir


@contextmanager
def _without_libraries() -> Iterator[None]:
    """Modules whose functions import the library when they are called, and no pyarrow."""
    missing: dict[str, Any] = {
        name: _Deferred(name) for name, package in LIBRARIES.items() if name not in sys.modules and find_spec(package)
    }
    if "pyarrow" not in sys.modules:
        missing["pyarrow"] = None  # importing it fails
    sys.modules.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


class _Deferred(ModuleType):
    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        library = self.__name__

        def function(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(library), name)(*args, **kwargs)

        return function
