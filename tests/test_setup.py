"""What is installed: constraints.txt pins all that requirements*.txt ask for; ofa_setup installs it when it must."""

import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FILES = ("requirements.txt", "requirements-extras.txt")
# Packages whose insides the repository replaces or calls: a newer version can break it without a word.
BOUNDED = ("ve-fairseq", "fairseq-fixed", "timm", "transformers", "gradio", "pycocoevalcap")
STUB = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/../calls"
exit "$(cat "$(dirname "$0")/../code")"
"""


def parsed(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_requirements_files_hold_what_pyproject_declares():
    tool = runpy.run_path(str(ROOT / "run_scripts/write_requirements.py"))
    written = tool["contents"]((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert written.keys() == set(FILES)
    for name, text in written.items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, "run run_scripts/write_requirements.py"


def test_every_extra_is_in_a_requirements_file():
    tool = runpy.run_path(str(ROOT / "run_scripts/write_requirements.py"))
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = [extra for group in tool["FILES"].values() for extra in group if extra]
    assert sorted(extras) == sorted(pyproject["project"]["optional-dependencies"])


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def machine(python):
    return {
        "python_version": python, "python_full_version": f"{python}.9", "platform_system": "Linux",
        "sys_platform": "linux", "platform_machine": "x86_64", "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "os_name": "posix",
    }  # fmt: skip


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("file", FILES)
def test_constraints_hold_all_requirements(file, python):
    there = machine(python)
    pins = [pin for pin in parsed("constraints.txt") if pin.marker is None or pin.marker.evaluate(there)]
    version_of = {plain(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(version_of) == len(pins)
    for wanted in parsed(file):
        if wanted.marker is None or wanted.marker.evaluate(there):
            assert wanted.specifier.contains(version_of[plain(wanted.name)]), wanted
    assert {"numpy", "triton", "huggingface-hub"} <= version_of.keys()  # what the requirements need in their turn


def test_constraints_are_exact_versions_and_name_no_host():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text and "\n-" not in text
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in parsed("constraints.txt"))


def test_what_is_replaced_has_an_upper_bound():
    wanted = {plain(one.name): one for file in FILES for one in parsed(file)}
    for name in BOUNDED:
        assert any(one.operator in ("<", "<=", "==") for one in wanted[name].specifier), name


@pytest.fixture
def tree(tmp_path):
    """The files that the setup reads, in a folder with a blank, and an interpreter that notes what it is asked for."""
    tree = tmp_path / "a tree"
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / "run_scripts").mkdir()
    (tree / "train.py").touch()
    (tree / ".venv" / "code").write_text("0")
    (tree / ".venv" / "bin" / "python").write_text(STUB)
    (tree / ".venv" / "bin" / "python").chmod(0o755)
    for name in (*FILES, "constraints.txt", "run_scripts/lib.sh"):
        (tree / name).write_bytes((ROOT / name).read_bytes())
    (tree / "run_scripts" / "a.sh").write_text('set -e\n. "$(dirname "$0")/lib.sh"\nofa_setup "$@"\necho goes on\n')
    return tree


def set_up(tree, *files, code=0, **env):
    """Arguments of pip, or None if nothing was installed."""
    calls = tree / ".venv" / "calls"
    calls.unlink(missing_ok=True)
    env = {"PATH": "/usr/bin:/bin", **env}
    script = tree / "run_scripts" / "a.sh"
    done = subprocess.run(["sh", script, *files], cwd="/", env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("goes on" in done.stdout) == (code == 0)
    if not calls.exists():
        return None
    assert len(calls.read_text().splitlines()) == 1
    return calls.read_text().split("--disable-pip-version-check ")[1].strip()


PINNED = "--constraint=constraints.txt --requirement=requirements.txt"
NEWEST = "--upgrade --upgrade-strategy=eager --requirement=requirements.txt"
EXTRAS = " --requirement=requirements-extras.txt"


def test_setup_installs_the_pinned_versions_once(tree):
    assert set_up(tree) == PINNED
    assert set_up(tree) is None
    assert set_up(tree, FILES[1]) == PINNED + EXTRAS
    assert set_up(tree, FILES[1]) is None and set_up(tree) is None


@pytest.mark.parametrize("name", [*FILES, "constraints.txt"])
def test_setup_notices_changed_files(tree, name):
    assert set_up(tree, FILES[1]) == PINNED + EXTRAS
    with open(tree / name, "a") as file:
        file.write("tqdm==4.60.0\n")
    assert set_up(tree, FILES[1]) == PINNED + EXTRAS
    assert set_up(tree, FILES[1]) is None


def test_setup_notices_the_variable(tree):
    assert set_up(tree) == PINNED
    assert set_up(tree, OFA_NEWEST="0") is None
    assert set_up(tree, OFA_NEWEST="1") == NEWEST
    assert set_up(tree, OFA_NEWEST="1") is None
    assert set_up(tree, FILES[1], OFA_NEWEST="1") == NEWEST + EXTRAS
    assert set_up(tree, FILES[1]) == PINNED + EXTRAS


def test_failed_setup_ends_the_script_and_is_tried_again(tree):
    (tree / ".venv" / "code").write_text("1")
    assert set_up(tree, code=1) == PINNED
    (tree / ".venv" / "code").write_text("0")
    assert set_up(tree) == PINNED


def test_setup_leaves_a_named_interpreter_alone(tree):
    assert set_up(tree, OFA_PYTHON="python3") is None
