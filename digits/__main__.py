"""Write the demo data: python -m data.demo OUT_DIR [--tasks A,B --train N --val N --test N --seed S --size PX]."""

import argparse
import sys

from digits.handwriting import SPLITS
from digits.tasks import TASKS
from utils.options import path_of, seed
from utils.program import program

SMALLEST_IMAGE = 24  # cells of 8 pixels, the resolution of the handwriting


def task_names(text: str) -> list[str]:
    """Names of tasks separated by commas."""
    names = text.split(",")
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown task {unknown[0]!r}: choose from {','.join(TASKS)}")
    return names


@program("python -m data.demo")
def main(argv: list[str] | None = None) -> int:
    """Write the folders of the tasks under the output folder; 2 on a user's mistake."""
    parser = argparse.ArgumentParser("python -m data.demo", description="Write the digit-scene demo data.")
    parser.add_argument("out_dir", type=path_of, help="folder to write to; created if missing")
    parser.add_argument("--tasks", type=task_names, default=list(TASKS), help=f"default: {','.join(TASKS)}")
    parser.add_argument("--train", type=int, default=6000, help="training rows (default %(default)s)")
    parser.add_argument("--val", type=int, default=300, help="validation rows (default %(default)s)")
    parser.add_argument("--test", type=int, default=500, help="test rows (default %(default)s)")
    parser.add_argument("--seed", type=seed, default=1, help="same seed, same files (default %(default)s)")
    parser.add_argument("--size", type=int, default=96, help="image side in pixels (default %(default)s)")
    args = parser.parse_args(argv)
    counts = {split: getattr(args, split) for split in SPLITS}
    if min(*counts.values(), args.seed) < 0 or args.size < SMALLEST_IMAGE:
        parser.error(f"--size must be {SMALLEST_IMAGE} or more and no other number may be negative")
    for task in (TASKS[name] for name in args.tasks):
        task.write(args.out_dir / task.folder, counts, args.seed, args.size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
