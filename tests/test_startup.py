"""Starting: what each program imports, and fairseq without its own tasks and models is otherwise the same."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# Nothing of this is needed by a command line, nor by most runs.
LIGHT = ("models", "models.model_flags", "models.records")  # flags and names, which import no torch
HEAVY = (
    "cv2",
    "datasets",
    "gradio",
    "matplotlib",
    "nltk",
    "open_clip",
    "pandas",
    "pyarrow",
    "pycocoevalcap.bleu",
    "rouge_score",
    "scipy",
    "sklearn",
    "sympy",
    "tensorboard",
    "timm",
    "torch._dynamo",
    "torchvision",
    "transformers",
)
ZOO = ("fairseq.tasks.translation", "fairseq.models.wav2vec", "fairseq.models.lstm")
FLAGS = (
    "a.tsv,b.tsv --task=caption --arch=ofa_tiny --criterion=adjust_label_smoothed_cross_entropy --optimizer=adam "
    "--lr=1e-4 --max-epoch=1"
).split()

# Scripts, each in a fork of one new interpreter: importing torch again and again would take most of the time.
FORKS = """
import json, os, sys
{first}
for script in {scripts!r}:
    if not (child := os.fork()):
        exec(script)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, script
"""
STARTED = """
import {program}
code = 0
try:
    {program}.main({argv!r})
except SystemExit as end:
    code = end.code
print()
print("said", json.dumps([code, sorted(sys.modules)]))
"""
# All that depends on what is registered, said by a process that has imported stock fairseq first, or not.
REGISTERED = """
{first}
import contextlib, io, re
import train, evaluate
import fairseq.criterions.sentence_prediction as stock_criterion
import fairseq.models, fairseq.registry, fairseq.tasks
import numpy as np
from omegaconf import OmegaConf
said = {{}}
for name, registry in fairseq.registry.REGISTRIES.items():
    said[name] = sorted(registry["registry"])
for program, argv in {lines!r}:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            said[" ".join([program, *argv])] = OmegaConf.to_container(sys.modules[program].parse_args(argv))
        except SystemExit as end:
            # Stock choices are in the order of a folder's files.
            said[" ".join([program, *argv])] = [end.code, sorted(re.findall(r"[\\w-]+", output.getvalue()))]
for package in (fairseq.tasks, fairseq.models):
    for name in ("TASK_REGISTRY", "MODEL_REGISTRY", "ARCH_MODEL_REGISTRY", "ARCH_CONFIG_REGISTRY"):
        if registry := getattr(package, name, None):
            said[name] = {{key: registry[key].__module__ for key in registry.keys()}}
    for name, registry in vars(package).items():  # now that all is imported
        if name.endswith("_REGISTRY"):
            said["in " + name] = sorted(dict.keys(registry))
said["f1"] = stock_criterion.acc_and_f1(np.array([0, 1, 0, 0]), np.array([0, 1, 1, 0]))
print()
print("said", json.dumps(said, default=str))
"""
LINES = [
    ("train", ["--help"]),
    ("evaluate", ["--help"]),
    ("train", FLAGS),
    ("train", [*FLAGS, "--task=translation", "--arch=transformer_iwslt_de_en", "--criterion=sentence_prediction"]),
    ("train", [*FLAGS, "--arch=wav2vec2", "--task=audio_pretraining", "--optimizer=sgd", "--lr-scheduler=fixed"]),
    ("train", ["a.tsv"]),
    ("train", [*FLAGS, "--task=nothing"]),
    ("train", [*FLAGS, "--arch=ofa_giant"]),
    ("evaluate", ["a.tsv", "--path=a.pt", "--task=language_modeling"]),
]


LEAN = [
    ("train", 0, ["--help"]),
    ("train", 2, ["a.tsv"]),
    ("train", 2, [*FLAGS, "--arch=nothing"]),
    ("evaluate", 0, ["--help"]),
    ("evaluate", 2, ["a.tsv", "--no-such-flag"]),
]
LEANER = [
    ("predict", 0, ["--help"]),
    ("predict", 0, ["caption", "--help"]),
    ("predict", 2, ["caption", "a.png"]),
    ("predict", 2, ["caption", "a.png", "--checkpoint=a.pt", "--batch-size=0"]),
    ("demo", 0, ["--help"]),
    ("demo", 2, ["--port=many"]),
]
RUNS = ["ofa_module.engine.loop", "evaluate", "models.predictor", "models.text_to_image"]
# One update: torch imports its compiler for the first optimizer.
UPDATE = """
import torch
from ofa_module.engine.optimizers import FusedAdam
weight = torch.nn.Parameter(torch.ones(2))
optimizer = FusedAdam([weight], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
optimizer.zero_grad()
weight.sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
"""


@cache
def said_by(scripts: tuple[str, ...], first: str = "", folder: Path = ROOT) -> list[Any]:
    """What each script prints as JSON after "said", all of them in forks of one process that has run `first`."""
    program = FORKS.format(first=first, scripts=scripts)
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("said ")]


def started(program: str, argv: list[str], lines: list[Any], first: str = "") -> tuple[int, list[str]]:
    """Exit code of a program, and the modules that it has imported; all its command lines are run together."""
    own = [line for line in lines if line[0] == program]
    scripts = tuple(STARTED.format(program=name, argv=argv) for name, _, argv in own)
    return said_by(scripts, first)[[line[2] for line in own].index(argv)]


def among(modules: list[str], packages: tuple[str, ...]) -> list[str]:
    return [name for name in modules if (name + ".").startswith(tuple(f"{package}." for package in packages))]


@pytest.mark.parametrize("program, code, argv", LEAN, ids=str)
def test_command_lines_need_torch_and_what_is_registered(program: str, code: int, argv: list[str]) -> None:
    found, modules = started(program, argv, LEAN, f"import {program}")
    assert found == code
    assert among(modules, ("torch", "fairseq", "tasks")) and not among(modules, HEAVY + ZOO)


@pytest.mark.parametrize("program, code, argv", LEANER, ids=str)
def test_command_lines_without_the_plugin_need_no_torch(program: str, code: int, argv: list[str]) -> None:
    found, modules = started(program, argv, LEANER)
    imported = [name for name in modules if name not in LIGHT]
    assert found == code and not among(imported, HEAVY + ("torch", "fairseq", "models"))


@pytest.mark.parametrize("module", RUNS)
def test_runs_import_what_they_need(module: str) -> None:
    script = "import {module}\n{update}\nprint('said', json.dumps(sorted(sys.modules)))"
    updates = [UPDATE if name == "ofa_module.engine.loop" else "" for name in RUNS]
    scripts = tuple(script.format(module=name, update=update) for name, update in zip(RUNS, updates, strict=True))
    assert not among(said_by(scripts, "import torch")[RUNS.index(module)], HEAVY + ZOO)


def test_lean_fairseq_knows_and_parses_what_stock_fairseq_does(tmp_path: Path) -> None:
    """Also `fairseq-train --user-dir ofa_module`, where fairseq is imported first."""
    scripts = tuple(REGISTERED.format(first=first, lines=LINES) for first in ("", "import fairseq"))
    lean, stock = said_by(scripts, f"sys.path.insert(0, {str(ROOT)!r})\nimport torch", tmp_path)
    assert lean.keys() == stock.keys() and len(stock["TASK_REGISTRY"]) > 40
    for name, value in stock.items():
        assert lean[name] == value, name
