"""Count the document frequencies CIDEr-D needs: python -m metrics.document_frequencies TSV --column N OUT.

Captions of an image stand in one row, joined by `&&`. Each loses its punctuation and gets `<eos>` as a last word, as
the released table of the training captions has it. The output is read by `--scst-cider-cached-tokens`, and by the
original code.
"""

import argparse
import pickle
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from metrics.cider import NGram, count_documents, reward_text
from utils.constants import SEPARATOR
from utils.errors import UserError
from utils.files import atomic_write
from utils.program import program


def read_captions(path: Path, column: int) -> Iterator[list[str]]:
    """Prepared captions of each row; UserError for a file or row that cannot be read."""
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                cells = line.rstrip("\r\n").split("\t")
                if len(cells) <= column:
                    raise UserError(
                        f"{path}, line {number}: there is no column {column} (the first is 0); correct the row or "
                        "choose another --column."
                    )
                yield [reward_text(caption) for caption in cells[column].split(SEPARATOR)]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read as a TSV file ({reason}); check the path.") from error


def write_table(frequencies: dict[NGram, int], images: int, path: Path) -> None:
    """Pickle in the released format, whole or not at all."""
    # The original code looks unknown n-grams up in it. Sorted, the same captions give the same file.
    counts: dict[NGram, float] = defaultdict(float, sorted(frequencies.items()))
    with atomic_write(path) as file:
        # 2 is the newest protocol that Python 2 reads, too
        pickle.dump({"document_frequency": counts, "ref_len": float(images)}, file, protocol=2)


@program("python -m metrics.document_frequencies")
def main(argv: list[str] | None = None) -> int:
    """Count, write, and say how much; 2 on a user's mistake."""
    parser = argparse.ArgumentParser(
        "python -m metrics.document_frequencies", description="Count document frequencies."
    )
    parser.add_argument("tsv", type=Path, help="training captions, e.g. caption_stage2_train.tsv")
    parser.add_argument("out", type=Path, help="file to write, e.g. coco-train-words.p")
    parser.add_argument("--column", type=int, default=2, help="column of the captions, from 0 (default %(default)s)")
    args = parser.parse_args(argv)
    if args.column < 0:
        parser.error(f"--column {args.column}: columns count from 0")
    frequencies, images = count_documents(read_captions(args.tsv, args.column))
    if not images:
        raise UserError(f"{args.tsv} has no rows; check how it was made.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_table(frequencies, images, args.out)
    print(f"{len(frequencies)} n-grams of {images} images -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
