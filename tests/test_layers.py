"""Imports go one way: the core works without fairseq, nobody imports upward, and there are no circles."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Floor of each package and module; the longest name counts. A file may import its own floor and those below.
FLOORS = {
    "ofa_names": 0,
    "ofa_command": 0,
    "utils": 0,
    "data": 1,
    "metrics": 2,
    "models.unset_weights": 2,
    "models.ofa": 3,
    "models.generation": 4,
    "models.clip": 4,
    "models.vqgan": 4,
    "models.answers": 5,
    "models.text_to_image": 5,
    "models.weights": 5,
    "models.hf": 6,
    "models.predictor": 6,
    "models.model_flags": 7,
    "models.records": 7,
    "models.export": 7,
    "digits": 7,
    "data.builders": 8,
    "models.web_page": 8,
    "models.server": 8,
    "demo": 9,
    "serve": 9,
    "predict": 9,
}
# Doors: names that other programs know, each a few lines that hand over to a higher floor.
DOORS = {
    "utils.checkpoint": "models",
    "utils.convert": "models.weights",
    "utils.image_codes": "data.builders",
    "data.build": "data.builders",
    "data.build_pretrain": "data.builders",
    "data.demo": "digits",
}
CORE_LOSSES = {f"criterions.{name}" for name in ("losses", "linear_cross_entropy", "reward")}  # torch only
PLUGIN = ("ofa_module", "tasks", "criterions", "train", "evaluate", "models.fairseq_ofa")
NOT_OURS = ("tests", "benchmarks", "run_scripts", "outputs", "ofa")


@cache
def sources():
    """Every module of the product -> its file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in NOT_OURS and not any(part.startswith(".") for part in parts):
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def imported(module):
    """Modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(sources()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in sources() else node.module for name in names}
    return found


def within(module, packages):
    return next((p for p in sorted(packages, key=len, reverse=True) if f"{module}.".startswith(f"{p}.")), None)


def floor_of(module):
    package = within(module, FLOORS)
    return None if package is None else FLOORS[package]


def is_core(module):
    return module in CORE_LOSSES or not within(module, PLUGIN)


def test_every_core_module_has_a_floor():
    without = {m for m in sources() if is_core(m) and floor_of(m) is None} - CORE_LOSSES
    assert without == {"models"}


@pytest.mark.parametrize("module", [m for m in sources() if is_core(m)])
def test_core_imports_only_downward(module):
    own = floor_of(module)
    for name in imported(module):
        assert name.split(".")[0] != "fairseq", f"{module} imports fairseq"
        assert is_core(name), f"{module} imports the plugin's {name}"
        if own is None and module in CORE_LOSSES:
            assert floor_of(name) is None, f"{module} must import torch and its like only, not {name}"
        elif own is not None and (floor := floor_of(name)) is not None and floor > own:
            assert module in DOORS and within(name, [DOORS[module]]), f"{module} imports {name}"


@pytest.mark.parametrize("door", DOORS)
def test_doors_are_a_few_lines(door):
    if door != "utils.checkpoint":  # whose door is one function
        assert len(sources()[door].read_text(encoding="utf-8").splitlines()) <= 10


def test_no_circles():
    waiting = {m: {n for n in imported(m) if n in sources() and n != m} for m in sources()}
    for door, package in DOORS.items():
        waiting[door] = {name for name in waiting[door] if not within(name, [package])}
    while free := [module for module, needed in waiting.items() if not needed]:
        for module in free:
            del waiting[module]
        for needed in waiting.values():
            needed.difference_update(free)
    assert not waiting


def test_core_imports_with_fairseq_blocked_and_configures_no_logging():
    modules = [m for m in sources() if is_core(m) and not m.endswith("__main__")]
    program = (
        "import sys, importlib, logging\n"
        "sys.modules.update(fairseq=None, fairseq_cli=None, omegaconf=None, hydra=None)\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert not logging.root.handlers and logging.root.level == logging.WARNING, name\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_one_file_attends():
    """Every attention goes through `attend`: nobody else calls PyTorch's."""
    users = [
        str(path.relative_to(ROOT))
        for path in ROOT.glob("models/**/*.py")
        if "scaled_dot_product_attention" in path.read_text(encoding="utf-8")
    ]
    assert users == ["models/ofa/attention.py"]
