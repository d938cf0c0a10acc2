"""Every task on the device: trains a few updates through its run script, resumes from the checkpoint, evaluates.

    python -m benchmarks.gpu.tasks [--device cpu] [--lane 0/2] [--names caption,gigaword]

Every other task trains in fp16, the rest in bf16. Evaluation in float32 must give the same records on the device and
on the CPU; how many are the same in half precision is said too. Exits with 1 if a task fails or its records differ.
"""

import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.measure import add_row, begin_table, exact_float32, make_parser

ROWS, TEST_ROWS, UPDATES = 24, 16, 3
QUICK = [
    "--max-epoch=9", "--batch-size=4", "--update-freq=1", "--log-interval=1", "--restore-file=checkpoints/ofa_demo.pt",
    "--save-interval=1", "--disable-validation",
]  # fmt: skip
HEADER = ("task", "training", "last loss", "restarted", "records equal to the CPU's", "in half precision", "seconds")


def train_task(argv: Sequence[str], updates: int) -> str:
    """Trains up to a number of updates; the run's log."""
    import train

    argv = [*argv, f"--max-update={updates}"]
    train.main(argv)
    return Path(train.parse_args(argv).common.log_file).read_text()


def evaluate_task(argv: Sequence[str], results: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Records and scores."""
    import evaluate

    evaluate.main(argv)
    records, scores = (json.loads(Path(f"{results}_{kind}.json").read_text()) for kind in ("predict", "scores"))
    return records, scores


def run_task(name: str, precision: str, device: str, env: dict[str, str]) -> tuple[list[Any], bool]:
    """One row of the table, and whether all is well."""
    from tests.tasks.test_all_tasks import TASKS, commands

    script, (evaluation, *args), result, _ = TASKS[name]
    start = time.perf_counter()
    of_device = {"cpu": ["--cpu"], "cuda": []}
    half = [f"--{precision}"] if device == "cuda" else ["--cpu"]
    (argv,) = commands(script, *QUICK, *half, env=env)
    folder = next(flag.split("=", 1)[1] for flag in argv if flag.startswith("--save-dir="))
    train_task(argv, UPDATES)
    log = train_task([flag for flag in argv if not flag.startswith(("--restore-file=", "--reset-"))], 2 * UPDATES)
    restarted = f"@ {UPDATES} updates" in log
    losses = re.findall(r" loss=([\d.naif-]+)", log)

    lines = commands(evaluation, *args, env={**env, "CHECKPOINT": f"{folder}/checkpoint_last.pt"})
    argv = next(line for line in lines if f"--gen-subset={result.split('/')[-1]}" in line)
    results = f"{env['RESULTS_DIR']}/{result}"
    records, scores = evaluate_task([*argv, *of_device[device]], results)
    rounded, _ = evaluate_task([*argv, *half], results)
    expected, expected_scores = evaluate_task([*argv, "--cpu"], results)
    same, same_half = (sum(map(dict.__eq__, some, expected)) for some in (records, rounded))
    well = restarted and same == len(expected) and all(abs(scores[k] - expected_scores[k]) < 1e-3 for k in scores)
    row = [name, precision, losses[-1] if losses else "none", "yes" if restarted else "NO"]
    row += [f"{same} of {len(expected)}", f"{same_half} of {len(expected)}", round(time.perf_counter() - start, 1)]
    return row, well


def main() -> int:
    """Prints a table; 1 if a task failed."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--lane", default="0/1", help="i/n: every n-th task, beginning with number i")
    parser.add_argument("--names", help="tasks, separated by commas")
    args = parser.parse_args()
    exact_float32()
    torch.set_num_threads(4)
    from digits.__main__ import main as build_demo
    from tests.tasks.test_all_tasks import TASKS

    lane, lanes = map(int, args.lane.split("/"))
    names = args.names.split(",") if args.names else list(TASKS)[lane::lanes]
    names = ["cola"] if args.tiny and not args.names else names  # its scores need no Java
    good = True
    begin_table(*HEADER)
    with tempfile.TemporaryDirectory() as work:
        build_demo([f"{work}/data", f"--train={ROWS}", "--val=5", f"--test={TEST_ROWS}", "--size=48"])
        env = {
            **os.environ, "DATA_DIR": f"{work}/data", "OUTPUT_DIR": f"{work}/out", "RESULTS_DIR": f"{work}/results",
            "DRY_RUN": "1", "SIZE": "demo", "GPUS_PER_NODE": "1", "OFA_PYTHON": sys.executable, "MAX_EPOCHS": "9",
            "PRECISION": "fp32", "NUM_WORKERS": "0",
        }  # fmt: skip
        for number, name in enumerate(names):
            precision = ("fp16", "bf16")[number % 2] if args.device == "cuda" else "fp32"
            try:
                with redirect_stdout(sys.stderr):  # the programs' log
                    row, well = run_task(name, precision, args.device, env)
                good = good and well
                add_row(*row)
            except (Exception, SystemExit) as error:
                traceback.print_exc()
                good = False
                add_row(name, precision, "", "", f"FAILED: {type(error).__name__}: {error}", "", "")
    print("\nAll is well." if good else "\nNOT all is well.")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
