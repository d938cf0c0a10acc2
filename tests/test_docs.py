"""The documentation: what it names exists, its commands are ones the real parsers take, its snippets run."""

import argparse
import csv
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from PIL import Image
from released_commands import RECIPES

import data.validate as validate
import evaluate
import predict
import train
from data.glue import GLUE
from data.tasks import TASKS
from ofa_module import PLUGIN_MODULES

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/**/*.md"))}
PAGES.update((name, (ROOT / name).read_text(encoding="utf-8")) for name in ("README.md", "CONTRIBUTING.md"))
FOLDERS = (
    "benchmarks",
    "criterions",
    "data",
    "digits",
    "docs",
    "metrics",
    "models",
    "ofa_module",
    "run_scripts",
    "tasks",
    "tests",
    "utils",
)
WRITTEN = re.compile(r"(^|_)(checkpoints|logs)$")  # folders below run_scripts that training makes
PATH = re.compile(r"(?:[\w.*-]|<\w+>|\{[^{}\s]*\}|/)+")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
NOT_DRY = (
    "pretrain_ofa_demo.sh",
    "demo_stage2.sh",
    "quickstart.sh",
    "demo_all.sh",
    "test.sh",
)  # these run, whatever DRY_RUN says


def blocks(text, language):
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


MISSING = re.compile(r"^## What is missing\n.*?(?=^## |\Z)", re.M | re.S)  # names what is not here
ORIGINAL = "docs/coming_from_the_original.md"


def present(page):
    """A page without what it says is missing."""
    return MISSING.sub("", PAGES[page])


def code(text):
    """Fenced blocks and code spans of a page."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    return fenced + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def shell_lines(text):
    """Commands of a page's bash blocks, one per line."""
    return [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines() if line.strip()]


COMMANDS = [(page, line) for page, text in PAGES.items() for line in shell_lines(text)]
SCRIPT_COMMANDS = [
    line
    for _, line in COMMANDS
    if re.search(r"\b(sh|bash) run_scripts/", line) and not any(name in line for name in NOT_DRY)
]
PYTHON_COMMANDS = [
    pytest.param(line, id=f"{page}: {line}")
    for page, line in COMMANDS
    if re.match(r"python (-m [\w.]+|train\.py|evaluate\.py|predict\.py|demo\.py|serve\.py)", line)
]


def slug(heading):
    """Anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def expand(pattern):
    """Glob patterns of a path with {a,b} and <placeholders>."""
    if choice := re.search(r"\{([^{}]*)\}", pattern):
        parts = choice[1].split(",")
        return [path for part in parts for path in expand(pattern[: choice.start()] + part + pattern[choice.end() :])]
    return [re.sub(r"<\w+>", "*", pattern).rstrip("/.")]


def named_paths(text):
    """Patterns of the repository's files that a page's code names; what runs write is left out."""
    for token in {token for part in code(text) for token in PATH.findall(part)}:
        is_program = token.endswith((".py", ".sh"))
        ours = token.partition("/")[0] in FOLDERS and "/" in token
        if (ours or is_program) and not any(WRITTEN.search(part) for part in token.split("/")):
            yield from expand(token)


def exists(pattern):
    """Whether a file fits: from the root, in run_scripts, or, for a bare name, anywhere."""
    places = [pattern, f"run_scripts/{pattern}"]
    if "/" not in pattern:
        places += [f"{folder}/**/{pattern}" for folder in FOLDERS]
    return any(next(ROOT.glob(place), None) for place in places)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            assert anchor in [slug(heading) for heading in headings], target


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page):
    assert not [pattern for pattern in named_paths(present(page)) if not exists(pattern)]


def test_missing_files_would_be_found():
    text = (
        "`tasks/<task>.py` `data/nowhere.py` `utils/BPE/{dict.txt,none.txt}` `run_scripts/vqa/vqa_logs/a.log` `gone.sh`"
    )
    missing = sorted(pattern for pattern in named_paths(text) if not exists(pattern))
    assert missing == ["data/nowhere.py", "gone.sh", "utils/BPE/none.txt"]


def named_modules():
    return sorted({name for text in PAGES.values() for name in re.findall(r"python -m ([\w.]+)", text)})


@pytest.mark.parametrize("name", named_modules())
def test_modules_exist(name):
    spec = find_spec(name)
    assert spec and (spec.submodule_search_locations is None or find_spec(f"{name}.__main__")), name


class Parsed(Exception):
    """Stops a program at its command line; holds the flags of its parser."""


def at_command_line(monkeypatch, name, argv, accept):
    """Flags of the module that `python -m` names; with `accept` its parser must take the arguments."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser, *args, **kwargs):
        if accept:
            parse_args(parser, *args, **kwargs)
        inner = [a.choices.values() for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        parsers = [parser, *(command for commands in inner for command in commands)]
        raise Parsed(*(flag for each in parsers for flag in each._option_string_actions))

    package = find_spec(name).submodule_search_locations is not None
    program = importlib.import_module(f"{name}.__main__" if package else name)
    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed) as caught:
            program.main(argv)
    return caught.value.args


def training_flags(monkeypatch):
    """Every flag of train.py, evaluate.py and predict.py, whatever the task and the criterion."""
    found = set()
    parse_known_args = argparse.ArgumentParser.parse_known_args

    def watched(parser, *args, **kwargs):
        found.update(parser._option_string_actions)
        return parse_known_args(parser, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_known_args", watched)
        evaluate.parse_args(["x.tsv"])
        train.parse_args(["x.tsv", "--arch=ofa_tiny", "--optimizer=adam", "--lr-scheduler=polynomial_decay"])
        for command in predict.COMMANDS:
            predict.parse_args([command, "x.jpg", "--checkpoint=x.pt"])
    for registry in (TASK_DATACLASS_REGISTRY, CRITERION_DATACLASS_REGISTRY):
        ours = [kind for kind in registry.values() if kind.__module__.startswith(("tasks.", "criterions."))]
        found.update("--" + option.name.replace("_", "-") for kind in ours for option in fields(kind))
    return found


def accepted_flags(monkeypatch):
    """Every flag of every program."""
    accepted = training_flags(monkeypatch)
    for name in named_modules():
        accepted.update(at_command_line(monkeypatch, name, [], accept=False))
    unnamed = (*ROOT.glob("run_scripts/**/*.py"), ROOT / "metrics" / "fid.py", ROOT / "demo.py", ROOT / "serve.py")
    for path in unnamed:  # programs without a module's name
        accepted.update(re.findall(r'add_argument\(\s*"(--[\w-]+)"', path.read_text(encoding="utf-8")))
    return accepted


def test_flags_exist(monkeypatch):
    accepted = accepted_flags(monkeypatch)
    named = {(page, flag) for page in PAGES for flag in FLAG.findall(present(page))}
    assert len(named) > 50 and not [(page, flag) for page, flag in named if flag not in accepted]
    (missing,) = MISSING.findall(PAGES[ORIGINAL])
    gone = set(FLAG.findall(missing)) - {"--bpe", "--bpe-dir"}  # what to use instead
    assert len(gone) > 10 and not gone & accepted


def test_scripts_of_the_original():
    """The page names each released script: here, or as missing; a missing one is nowhere."""
    here = set(re.findall(r"`\w+/(\w+\.sh)`", present(ORIGINAL)))
    assert RECIPES.keys() <= here
    (missing,) = MISSING.findall(PAGES[ORIGINAL])
    gone = set(re.findall(r"`(\w+\.sh)`", missing))
    assert len(gone) > 5 and not [name for name in gone if exists(name)]


PROSE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "dataset/README.md", *PAGES)
PROSE += tuple(str(path.relative_to(ROOT)) for path in ROOT.glob("checkpoints/*.md"))


@pytest.mark.parametrize("page", list(dict.fromkeys(PROSE)))
def test_lines_of_prose_are_short(page):
    """Outside of code and tables, which cannot be wrapped; an URL does not count."""
    text = re.sub(r"^ *```.*?^ *```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = [re.sub(r"https?://\S+", "", line) for line in text.splitlines() if not line.startswith(("|", "    "))]
    assert not [line for line in lines if len(line) > 120]


def test_site(tmp_path):
    """mkdocs finds every page in the navigation, and every link and anchor leads somewhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ, NO_MKDOCS_2_WARNING="1"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r"<(?:script|img|link)\b[^>]*?\b(?:src|href)=\"?([^\s\">]+)", html)
    assert len(loaded) > 3 and not [name for name in loaded if name.startswith(("http:", "https:", "//"))]


def dry_run(line):
    """train or evaluate, and its arguments: what a line of a page would start first."""
    env = {"GPUS_PER_NODE": "1", "PRECISION": "fp32", **os.environ, "DRY_RUN": "1", "OFA_PYTHON": "python"}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    words = shlex.split(done.stdout.splitlines()[0])
    programs = {f"{ROOT}/train.py": train, f"{ROOT}/evaluate.py": evaluate}
    at = next(i for i, word in enumerate(words) if word in programs)
    return programs[words[at]], words[at + 1 :]


def test_script_commands():
    different = {}  # those with the same flags parse alike, and each takes a third of a second
    for line in SCRIPT_COMMANDS:
        program, argv = dry_run(line)
        different[program, frozenset(word.partition("=")[0] for word in argv[1:])] = argv
    assert len(different) > 10
    for (program, _), argv in different.items():
        assert program.parse_args(argv).task.data == argv[0]


@pytest.mark.parametrize("line", PYTHON_COMMANDS)
def test_python_command(line, monkeypatch, tmp_path):
    _, program, *argv = shlex.split(line, comments=True)
    for word in argv:
        if word.startswith("--config="):  # the one that the page shows
            monkeypatch.chdir(tmp_path)
            path = tmp_path / word.removeprefix("--config=")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(blocks(PAGES["docs/training.md"], "yaml")[0])
    if program == "-m":
        at_command_line(monkeypatch, argv[0], argv[1:], accept=True)
    else:
        importlib.import_module(program.removesuffix(".py")).parse_args(argv)


@pytest.mark.parametrize("module", [name for name in PLUGIN_MODULES if name.startswith("tasks.")])
def test_every_task_has_a_page(module):
    task = module.removeprefix("tasks.")
    page = PAGES["docs/pretraining.md" if task == "unify_task" else f"docs/tasks/{task}.md"]
    for name in GLUE if task == "glue" else [task]:
        assert f"`{name}`" in page or f"--task={name}" in page


def test_images_are_small():
    sizes = [path.stat().st_size for path in ROOT.glob("docs/**/*.png")]
    assert sizes and max(sizes) < 60_000 and sum(sizes) < 400_000


OWN_DATA = PAGES["docs/custom_data.md"]
ROW = {
    "image": "0.png", "caption": "a cat", "text": "the cat", "box": "1,2,8,9.5", "hypothesis": "it sleeps",
    "name": "cat", "article": "a cat sleeps .", "summary": "cat sleeps", "first": "a cat", "second": "an animal",
}  # fmt: skip


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    """A folder with the images, tables and answers that the page begins with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (12, 10), (80 * number, 0, 0)).save(f"images/{number}.png")
    for split, rows in (("train", 3), ("val", 2)):
        with open(f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "question", "answer"])
            table.writerows([f"{number}.png", "what is this?", f"très red {number}"] for number in range(rows))
    Path("answers.txt").write_text("".join(f"très red {number}\n" for number in range(3)), encoding="utf-8")
    return tmp_path


def arguments(line):
    """Arguments of a command, with the repository's vocabulary folder."""
    return [word.replace("utils/BPE", f"{ROOT}/utils/BPE") for word in shlex.split(line)]


def test_own_data_is_made_and_checked(own_data, capsys):
    checks = [line for line in shell_lines(OWN_DATA) if line.startswith("python -m data.validate vqa_gen")]
    assert [validate.main([*arguments(line)[3:], "--workers=0"]) for line in checks] == [0, 0, 0]
    assert "3 of 3 rows are good." in capsys.readouterr().out


def test_predictions_of_own_data_are_checked(own_data):
    (line,) = [line for line in shell_lines(OWN_DATA) if "--check-submission" in line]
    cfg = evaluate.parse_args(arguments(line)[2:])
    path = Path(cfg.evaluation.check_submission)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([{"question_id": number, "answer": "red"} for number in range(2)]), encoding="utf-8")
    evaluate.evaluate(cfg)
    path.write_text(json.dumps([{"question_id": number, "answer": "red"} for number in (1, 0)]), encoding="utf-8")
    with pytest.raises(ValueError, match="the data file has"):
        evaluate.evaluate(cfg)


def test_tables_of_other_tasks_are_good(own_data):
    (own_data / "classes.txt").write_text("cat\ndog\n")
    for task in ("caption", "refcoco", "snli_ve", "image_classify", "gigaword", "mnli"):
        row = {**ROW, "label": "1" if task == "mnli" else "neutral"}
        names = [name for name in TASKS[task].names if name in row]
        with open("other.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([names, [row[name] for name in names]])
        more = ["--candidates=classes.txt"] if TASKS[task].checks_answers else []
        assert validate.main([task, "other.csv", "--image-root=images", "--workers=0", *more]) == 0, task
