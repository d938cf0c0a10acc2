"""Floors of the house: the core works without fairseq, and nobody imports upward."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Floor of each core package; a file may import its own floor and those below.
FLOORS = {"utils": 0, "data": 1, "models.ofa": 2, "models.generation": 3, "models.predictor": 4}
# load_model and its kin build networks from files, inside functions or for types only; the others are programs.
UPWARD = {
    ("utils/checkpoint.py", "models.ofa"),
    ("utils/image_codes.py", "data"),
    ("utils/fid.py", "data"),
    ("utils/convert.py", "data"),
    ("utils/convert.py", "models.ofa"),
    ("utils/convert.py", "models.predictor"),
}
CORE_LOSSES = ("losses", "linear_cross_entropy", "reward")
PLUGIN = ("ofa_module", "tasks", "train", "evaluate", "models.fairseq_ofa", "criterions.base")


def core_files():
    for package in FLOORS:
        yield from sorted((ROOT / package.replace(".", "/")).rglob("*.py"))
    yield from (ROOT / "criterions" / f"{name}.py" for name in CORE_LOSSES)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def floor_of(module):
    return next((floor for package, floor in FLOORS.items() if (module + ".").startswith(package + ".")), None)


@pytest.mark.parametrize("path", core_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_core_imports_only_downward(path):
    name = str(path.relative_to(ROOT))
    own = floor_of(name.removesuffix(".py").replace("/", "."))
    for module in imported(path):
        assert module.split(".")[0] != "fairseq", f"{name} imports fairseq"
        assert not module.startswith(PLUGIN), f"{name} imports the plugin's {module}"
        if own is None:
            assert floor_of(module) is None, f"{name} must import torch and its like only, not {module}"
        elif (floor := floor_of(module)) is not None and floor > own:
            assert any(name == user and module.startswith(used) for user, used in UPWARD), f"{name} imports {module}"


def test_core_imports_with_fairseq_blocked():
    modules = [
        str(p.relative_to(ROOT).with_suffix("")).replace("/", ".") for p in core_files() if p.name != "__main__.py"
    ]
    program = (
        "import sys, importlib\n"
        "sys.modules.update(fairseq=None, fairseq_cli=None, omegaconf=None, hydra=None)\n"
        f"for name in {[m.removesuffix('.__init__') for m in modules]!r}: importlib.import_module(name)\n"
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
