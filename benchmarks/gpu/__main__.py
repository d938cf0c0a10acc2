"""Runs every part of the GPU benchmark and writes one page of results: see benchmarks/gpu.sh.

    python -m benchmarks.gpu [--device cpu --tiny] [--parts checks,tasks,training] [--output FILE.md]

A part is a process of its own with a time limit: one that fails or hangs leaves the others' figures alone.
"""

import argparse
import importlib.util
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.gpu.measure import copy_bytes, product_flops

PACKAGES = (
    "fairseq", "hydra", "omegaconf", "timm", "tokenizers", "sklearn", "sacrebleu", "bitarray", "rouge_score", "nltk",
    "open_clip", "pycocotools", "pycocoevalcap", "transformers", "tensorboard", "pytest",
)  # fmt: skip


class Part(NamedTuple):
    """A module of this package: its flags, its time limit in seconds, whether it leaves the device to others too."""

    title: str
    module: str
    flags: tuple[str, ...] = ()
    limit: int = 120
    shares: bool = False


PARTS = {
    "checks": Part("Golden figures", "checks", limit=120, shares=True),
    "tasks": Part("Every task: training, restart, evaluation", "tasks", ("--lane=0/2",), 120, True),
    "tasks2": Part("Every task: training, restart, evaluation (2)", "tasks", ("--lane=1/2",), 120, True),
    "training": Part("Updates", "training", ("--seconds=0.7",), 130),
    "decoding": Part("Answers", "decoding", ("--seconds=0.7",), 100),
    "attention": Part("Attention with a position bias", "attention", ("--seconds=0.3",), 80),
    "compiled": Part("Updates, layers compiled", "training", ("--compiled", "--seconds=0.7"), 100),
}


def run(part: Part, flags: list[str]) -> tuple[str, bool]:
    """A part's markdown, and whether it succeeded; its log goes to standard error."""
    limit = part.limit if "--device=cuda" in flags else 20 * part.limit
    command = [sys.executable, "-m", f"benchmarks.gpu.{part.module}", *part.flags, *flags]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as log:
        try:
            code = str(subprocess.run(command, stdout=output, stderr=log, timeout=limit).returncode)
        except subprocess.TimeoutExpired:
            code = f"no end after {limit} s"
        seconds = time.perf_counter() - start
        output.seek(0)
        log.seek(0)
        page, lines = output.read(), log.read()
    print(f"== {part.title}: {seconds:.0f} s, exit code {code}\n{lines[-3000:]}", file=sys.stderr, flush=True)
    verdict = (
        f"{seconds:.0f} s" if code == "0" else f"FAILED after {seconds:.0f} s: {code}; end of its log: {lines[-300:]!r}"
    )
    return f"## {part.title}\n\n{page.strip()}\n\n({verdict})\n", code == "0"


def machine(device: str, tiny: bool) -> str:
    """The page's head: machine, versions, ceilings, absent packages."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    absent = ", ".join(package for package in PACKAGES if importlib.util.find_spec(package) is None) or "none"
    product, copy = product_flops(device, tiny) / 1e12, copy_bytes(device, tiny) / 1e12
    return f"""# GPU benchmark: {name}, {date.today()}

- torch {torch.__version__}, Python {platform.python_version()}; absent packages: {absent}
- one bf16 product: {product:.0f} TFLOP/s; one copy: {copy:.2f} TB/s (bytes read and written)
- written by `bash benchmarks/gpu.sh`
"""


def main() -> int:
    """Runs the parts, those that share the device at once; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script out (default %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="smallest models, few cases")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="the page (printed if absent)")
    args = parser.parse_args()
    if unknown := set(args.parts.split(",")) - set(PARTS):
        parser.error(f"--parts {', '.join(sorted(unknown))}: choose among {', '.join(PARTS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device: pass --device=cpu --tiny to try the script out")
    chosen = [PARTS[name] for name in args.parts.split(",")]
    flags = [f"--device={args.device}", *(["--tiny", "--seconds=0"] if args.tiny else [])]
    page, good = machine(args.device, args.tiny), True
    together = [part for part in chosen if part.shares]
    with ThreadPoolExecutor(max(1, len(together))) as pool:
        results = list(pool.map(lambda part: run(part, flags), together))
    for part in chosen:
        text, ok = results[together.index(part)] if part.shares else run(part, flags)
        page, good = f"{page}\n{text}", good and ok
        if args.output is not None:
            args.output.write_text(page, encoding="utf-8")
    print(page)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
