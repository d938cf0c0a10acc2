"""Starting: what each program imports, and fairseq without its own tasks and models is otherwise the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# Nothing of this is needed by a command line, nor by most runs.
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

STARTED = """
import json, sys
import {program}
code = 0
try:
    {program}.main({argv!r})
except SystemExit as end:
    code = end.code
print()
print(json.dumps([code, sorted(sys.modules)]))
"""
# All that depends on what is registered, said by a process that has imported stock fairseq first, or not.
REGISTERED = """
import sys
sys.path.insert(0, {root!r})
{first}
import contextlib, io, json, re
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
json.dump(said, sys.stdout, default=str)
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


def started(program: str, *argv: str) -> tuple[int, list[str]]:
    """Exit code of a program, and the modules that it has imported."""
    script = STARTED.format(program=program, argv=list(argv))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, modules


def among(modules: list[str], packages: tuple[str, ...]) -> list[str]:
    return [name for name in modules if (name + ".").startswith(tuple(f"{package}." for package in packages))]


@pytest.mark.parametrize(
    "program, code, argv",
    [
        ("train", 0, ["--help"]),
        ("train", 2, ["a.tsv"]),
        ("train", 2, [*FLAGS, "--arch=nothing"]),
        ("evaluate", 0, ["--help"]),
        ("evaluate", 2, ["a.tsv", "--no-such-flag"]),
    ],
    ids=str,
)
def test_command_lines_need_torch_and_what_is_registered(program: str, code: int, argv: list[str]) -> None:
    found, modules = started(program, *argv)
    assert found == code
    assert among(modules, ("torch", "fairseq", "tasks")) and not among(modules, HEAVY + ZOO)


@pytest.mark.parametrize(
    "program, code, argv",
    [
        ("predict", 0, ["--help"]),
        ("predict", 0, ["caption", "--help"]),
        ("predict", 2, ["caption", "a.png"]),
        ("predict", 2, ["caption", "a.png", "--checkpoint=a.pt", "--batch-size=0"]),
        ("demo", 0, ["--help"]),
        ("demo", 2, ["--port=many"]),
    ],
    ids=str,
)
def test_command_lines_without_the_plugin_need_no_torch(program: str, code: int, argv: list[str]) -> None:
    found, modules = started(program, *argv)
    assert found == code and not among(modules, HEAVY + ("torch", "fairseq", "models"))


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


@pytest.mark.parametrize("module", ["ofa_module.engine.loop", "evaluate", "models.predictor", "models.text_to_image"])
def test_runs_import_what_they_need(module: str) -> None:
    update = UPDATE if module == "ofa_module.engine.loop" else ""
    script = f"import json, sys\nimport {module}\n{update}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not among(json.loads(done.stdout.splitlines()[-1]), HEAVY + ZOO)


def test_lean_fairseq_knows_and_parses_what_stock_fairseq_does(tmp_path: Path) -> None:
    """Also `fairseq-train --user-dir ofa_module`, where fairseq is imported first."""
    said: list[dict[str, Any]] = []
    for first in ("", "import fairseq"):
        script = REGISTERED.format(root=str(ROOT), first=first, lines=LINES)
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout[done.stdout.index("{") :]))
    lean, stock = said
    assert lean.keys() == stock.keys() and len(stock["TASK_REGISTRY"]) > 40
    for name, value in stock.items():
        assert lean[name] == value, name
