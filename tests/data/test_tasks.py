"""The table of tasks: what it names exists, and the released scripts and the documentation say the same."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from released_commands import RECIPES

from data.answers import AnswerConfig
from data.base import DataConfig, OFADataset
from data.glue import GLUE
from data.tasks import PRETRAINING, TASKS
from models.generation import GenerationConfig
from models.weights.card import ROW_OPTIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINES = [line for _, lines in RECIPES.values() for line in lines]


def lines_of(task):
    """Released command lines of a task, and with which columns each reads its rows."""
    for line in LINES:
        if re.search(rf"--task={task}( |$)", line):
            cols = re.search(r"--selected-cols=([\d,]+)|'selected_cols': ?'([\d,]+)'", line)
            assert cols, line
            yield line, next(filter(None, cols.groups()))


def evaluated_columns(task):
    row = TASKS[task]
    return ",".join(str(number) for number in {**row.columns, **row.evaluated}.values())


@pytest.mark.parametrize("name", [*TASKS, *PRETRAINING])
def test_classes_exist_and_read_the_columns(name):
    row = {**TASKS, **PRETRAINING}[name]
    assert issubclass(row.config, DataConfig) and issubclass(row.dataset.func, OFADataset)
    if name not in GLUE:  # whose columns depend on the task
        assert row.dataset.func.columns == row.names
    if row.checks_answers:
        assert issubclass(row.config, AnswerConfig)


@pytest.mark.parametrize("name", TASKS)
def test_options_exist(name):
    row = TASKS[name]
    options = {f.name for f in fields(row.config)}
    assert row.recipe.keys() <= options & set(ROW_OPTIONS)
    assert row.switched.keys() <= row.columns.keys() and set(row.switched.values()) <= options
    assert row.evaluated.keys() <= row.columns.keys()
    GenerationConfig(**row.decoding)
    assert "" in row.prompts and all("gpt2" in templates for templates in row.prompts.values())


@pytest.mark.parametrize("name", TASKS)
def test_the_released_scripts_read_these_columns(name):
    read = {cols for _, cols in lines_of(name)}
    assert read and read <= {TASKS[name].selected_cols, evaluated_columns(name)}


@pytest.mark.parametrize("name", [name for name, row in TASKS.items() if row.decoding])
def test_the_released_evaluation_decodes_so(name):
    flags = set()
    for option, value in TASKS[name].decoding.items():
        flags.add(f"--{option.replace('_', '-')}" + ("" if value is True else f"={value}"))
    flags.discard("--sampling")  # always, for images
    assert any(flags <= set(line.split()) for line, _ in lines_of(name) if "--path=" in line)


FOLDERS = {"vqa_gen": "vqa"}  # of run scripts that are not called as their task


@pytest.mark.parametrize("name", [name for name in TASKS if name not in GLUE])
def test_run_scripts_read_these_columns(name):
    scripts = [path.read_text() for path in ROOT.glob(f"run_scripts/{FOLDERS.get(name, name)}/*.sh")]
    found = {
        pair for text in scripts for pair in re.findall(r"--selected-cols=([\d,]+)|'selected_cols': '([\d,]+)'", text)
    }
    read = {cols for pair in found for cols in pair if cols}
    assert read and read <= {TASKS[name].selected_cols, evaluated_columns(name)}


def test_run_scripts_of_glue_read_these_columns():
    rows = re.search("<<'TABLE'\n(.*?)^TABLE", (ROOT / "run_scripts/glue/lib.sh").read_text(), re.M | re.S)
    read = {row.split()[0]: row.split()[6] for row in rows[1].splitlines()}
    assert read == {name: TASKS[name].selected_cols for name in GLUE}


def table(page):
    """Cells of the rows of a page's tables."""
    lines = [line for line in (DOCS / page).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_of_data_files_lists_the_columns():
    listed = {}
    for name, _, columns in (row for row in table("data_format.md") if len(row) == 3):
        listed[re.sub(r"\[(\w+)\].*", r"\1", name)] = re.findall(r"`([\d,]+)`", columns)
    for name in TASKS.keys() - GLUE.keys():
        expected = [TASKS[name].selected_cols, *([evaluated_columns(name)] if TASKS[name].evaluated else [])]
        assert listed[name] == expected, name
    by_name = {row[0].strip("`"): row[1] for row in table("tasks/glue.md")}
    assert {name: by_name[name] for name in GLUE} == {name: TASKS[name].selected_cols for name in GLUE}


@pytest.mark.parametrize("name", [name for name in TASKS if name not in GLUE and name != "caption"])
def test_the_page_of_a_task_names_its_columns(name):
    assert f"`--selected-cols={TASKS[name].selected_cols}`" in (DOCS / "tasks" / f"{name}.md").read_text()


def test_the_table_waits_for_nothing():
    program = "import sys, data.tasks, data.prompts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
