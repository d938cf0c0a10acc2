"""Several evaluations in one group of processes: `torchrun evaluate_many.py COMMANDS.json` (lists of arguments)."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import evaluate
from ofa_module import cli

if __name__ == "__main__":
    configs = [evaluate.parse_args(argv) for argv in json.loads(Path(sys.argv[1]).read_text())]
    cli.run(lambda _: [evaluate.evaluate(cfg) for cfg in configs], configs[0])
