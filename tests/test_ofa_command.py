"""The command `ofa` beside a user's own `utils`, `data` and `models`, and the sentence where they clash."""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import ofa_command
from ofa_command import PROGRAMS

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "tests/golden/tsv/caption/caption_val.tsv"
# What a clone holds and the installed command does not need.
LEFT_OUT = (".*", "outputs", "checkpoints", "results", "tests", "benchmarks", "docs", "*.egg-info", "__pycache__")


@pytest.fixture
def folder(tmp_path):
    """A user's folder with packages of OFA's names and a data file."""
    folder = tmp_path / "my project"
    for name in ("utils", "data", "models"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("mine = 1\n")
    shutil.copy(ROWS, folder / "rows.tsv")
    return folder


def run(folder, *command, path=ROOT):
    """Exit code, output and errors of a command in a folder, with the clone behind it on Python's path."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path)}
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def python(folder, *args, **kwargs):
    return run(folder, sys.executable, *args, **kwargs)


def test_help_lists_the_commands_in_a_line_each(folder):
    program = "import sys, ofa_command\ntry: ofa_command.main(['--help'])\nfinally: print(sorted(sys.modules))"
    code, output, _ = python(folder, "-c", program)
    assert code == 0 and not any(f"'{name}'" in output for name in ("torch", "fairseq", "numpy"))
    lines = [line.split()[0] for line in output.splitlines() if line.startswith("  ")]
    assert lines[-len(PROGRAMS) :] == [*PROGRAMS] == [
        "train", "evaluate", "predict", "demo", "serve", "validate", "convert", "export", "build", "image-codes",
    ]  # fmt: skip


@pytest.mark.parametrize("argv", [[], ["trian"], ["--flag", "train"]])
def test_a_line_without_a_command_is_refused(argv, capsys):
    with pytest.raises(SystemExit) as end:
        ofa_command.main(argv)
    assert end.value.code == 2 and "ofa: error:" in capsys.readouterr().err


@pytest.mark.parametrize("command", PROGRAMS)
def test_every_program_is_there(command):
    assert callable(import_module(PROGRAMS[command][0]).main)


@pytest.mark.parametrize("command", PROGRAMS)
def test_help_and_errors_name_the_command(command, monkeypatch, capsys):
    main = import_module(PROGRAMS[command][0]).main
    for argv, shown in (["--help"], "out"), (["--no-such-flag"], "err"):
        monkeypatch.setattr(sys, "argv", [f"ofa {command}", *argv])
        with pytest.raises(SystemExit):
            main()
        text = getattr(capsys.readouterr(), shown)
        assert text.startswith(f"usage: ofa {command} ") and (shown == "out" or f"\nofa {command}: error: " in text)


@pytest.mark.parametrize("result, code", [(None, 0), (0, 0), (1, 1), (2, 2)])
def test_a_program_gets_its_arguments_and_its_exit_code_is_handed_on(result, code, monkeypatch):
    seen = []
    program = SimpleNamespace(main=lambda: seen.append(sys.argv[:]) or result)
    monkeypatch.setattr(ofa_command, "import_module", lambda name: program)
    monkeypatch.setattr(sys, "argv", ["ofa", "image-codes", "--help", "a b"])
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert ofa_command.main() == code
    assert seen == [["ofa image-codes", "--help", "a b"]] and sys.path[0] == str(ROOT)


def test_a_copy_outside_a_clone_says_what_to_install(tmp_path):
    shutil.copy(ROOT / "ofa_command.py", tmp_path)
    code, _, errors = python(tmp_path, "-m", "ofa_command", "train", path="")
    assert code == 2 and errors == f"ofa: error: {tmp_path} is not a clone of OFA: run `pip install -e .` in one.\n"


def test_packages_imported_before_the_command_are_named(folder):
    code, _, errors = python(folder, "-c", "import models, ofa_command; exit(ofa_command.main(['validate']))")
    assert code == 2
    assert errors.startswith(f"ofa: error: Python takes models from {folder / 'models'} and not from {ROOT}")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("name", ["utils", "data", "models"])
@pytest.mark.parametrize("args", [["-m", "predict", "--help"], ["-m", "demo", "--help"], ["-m", "train", "x.tsv"]])
def test_a_program_that_would_import_the_users_package_says_so(folder, name, args):
    for other in {"utils", "data", "models"} - {name}:
        shutil.rmtree(folder / other)
    code, output, errors = python(folder, *args)
    assert (code, output, len(errors.splitlines())) == (2, "", 1)
    assert errors.startswith(f"{args[1]}.py: error: Python takes {name} from {folder / name} and not from {ROOT}")


@pytest.mark.parametrize("module", ["utils.convert", "data.validate"])
def test_a_module_run_by_name_says_so_too(folder, module):
    shutil.rmtree(folder / "utils")
    shutil.rmtree(folder / "data")
    shutil.rmtree(folder / "models")
    (folder / "models.py").write_text("mine = 1\n")
    code, output, errors = python(folder, "-m", module, "--help")
    assert (code, output, len(errors.splitlines())) == (2, "", 1)
    assert errors.startswith(f"ofa: error: Python takes models from {folder / 'models.py'} and not from {ROOT}")


@pytest.mark.parametrize("name", ["criterions", "tasks"])
def test_training_needs_two_names_more(folder, name):
    for package in ("utils", "data", "models"):
        shutil.rmtree(folder / package)
    (folder / f"{name}.py").write_text("mine = 1\n")
    code, _, errors = python(folder, "-c", "import ofa_module")
    assert code == 1 and errors.splitlines()[-1].startswith(
        f"ofa_names.NameClashError: Python takes {name} from {folder / name}.py and not from {ROOT}"
    )
    assert python(folder, "-m", "predict", "--help")[0] == 0


IMPORTS = {
    "first on the path": "import models.predictor",
    "imported already": f"import sys, utils; sys.path.insert(0, {str(ROOT)!r}); import models.predictor",
    "a public function": "from utils.checkpoint import load_model",
}


@pytest.mark.parametrize("how", IMPORTS)
def test_an_import_names_the_clash(folder, how):
    shutil.rmtree(folder / "models" if how != "a public function" else folder / "utils")
    shutil.rmtree(folder / "data")
    theirs = "models" if how == "a public function" else "utils"
    code, _, errors = python(folder, "-c", IMPORTS[how])
    last = errors.splitlines()[-1]
    assert code == 1 and last == (
        f"ofa_names.NameClashError: Python takes {theirs} from {folder / theirs} and not from {ROOT}, where OFA is: "
        f"rename yours, or put {ROOT} first in sys.path before anything imports {theirs}."
    )


def test_folders_without_python_files_do_not_clash(folder):
    for name in ("utils", "data", "models"):
        (folder / name / "__init__.py").unlink()
    assert python(folder, "-m", "predict", "--help")[0] == 0


def test_a_script_of_the_clone_finds_its_own_packages(folder):
    assert python(folder, ROOT / "predict.py", "--help", path=folder)[0] == 0


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder of the programs of an environment in which `pip install -e .` ran in a clone; its libraries are ours."""
    place = tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT, place / "clone", ignore=shutil.ignore_patterns(*LEFT_OUT))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "env"], check=True)
    site_packages = next((place / "env").glob("lib/python*/site-packages"))
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [place / "env/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--editable=.", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, *options], cwd=place / "clone", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place / "env/bin"


def test_installed_command(installed, folder):
    code, output, errors = run(folder, installed / "ofa", "predict", "--help", path="")
    assert code == 0 and "summarise" in output and not errors
    code, output, errors = run(folder, installed / "ofa", "validate", "caption", "rows.tsv", path="")
    assert code == 0 and output.endswith("\n6 of 6 rows are good.\n"), errors
    code, _, errors = run(folder, installed / "ofa", "validate", "caption", "none.tsv", path=folder)
    assert code == 2 and errors.startswith("ofa validate: error: ") and "There is no data file none.tsv" in errors


def test_installed_packages(installed, folder):
    program = "import models, data, utils, ofa_names; print(models.__path__[0])"
    clone = installed.parents[1] / "clone"
    code, output, errors = run(installed, installed / "python", "-c", program, path="")
    assert (code, output) == (0, f"{clone / 'models'}\n"), errors
    for name in ("data", "models"):
        shutil.rmtree(folder / name)
    code, _, errors = run(folder, installed / "python", "-c", program, path="")
    assert code == 1 and f"Python takes utils from {folder / 'utils'} and not from {clone}" in errors
