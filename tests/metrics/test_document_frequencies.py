import json
import os
import pickle
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from metrics.cider import CiderD
from metrics.document_frequencies import main

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
REWARDS = json.loads((GOLDEN / "losses_tiny.json").read_text())["rewards"]


def write_corpus(path: Path) -> None:
    rows = (f"{i}\t{'.&& '.join(captions)}.\timage" for i, captions in enumerate(REWARDS["corpus"]))
    path.write_text("\r\n".join(rows))


def test_golden_table_from_the_corpus(tmp_path: Path) -> None:
    write_corpus(tmp_path / "train.tsv")
    args = ["train.tsv", "--column", "1", "words/df.p"]
    program = [sys.executable, "-m", "metrics.document_frequencies"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*program, *args], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "625 n-grams of 8 images -> words/df.p\n"
    for options in ({}, {"encoding": "latin1"}):  # the second is how the original reads it
        table = pickle.loads((tmp_path / "words/df.p").read_bytes(), **options)
        assert table == pickle.loads((GOLDEN / "cider_df.p").read_bytes())
        assert type(table["document_frequency"]) is defaultdict and table["document_frequency"]["unknown",] == 0.0


def test_scorer_reads_what_was_written(tmp_path: Path) -> None:
    write_corpus(tmp_path / "train.tsv")
    assert main([str(tmp_path / "train.tsv"), "--column=1", str(tmp_path / "df.p")]) == 0
    pair = ["a cat on a table <eos>"], [["a black cat <eos>", "a cat on the table <eos>"]]
    ours, golden = CiderD.from_pickle(tmp_path / "df.p"), CiderD.from_pickle(GOLDEN / "cider_df.p")
    np.testing.assert_array_equal(ours.score(*pair)[1], golden.score(*pair)[1])


@pytest.mark.parametrize(
    ("rows", "words"),
    [("1\ta cat\n2\n", "line 2: there is no column 1"), ("", "has no rows"), (None, "cannot be read")],
)
def test_bad_files_are_one_sentence(
    rows: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if rows is not None:
        (tmp_path / "train.tsv").write_text(rows)
    assert main([str(tmp_path / "train.tsv"), "--column=1", str(tmp_path / "df.p")]) == 2
    message = capsys.readouterr().err
    assert words in message and len(message.splitlines()) == 1 and not (tmp_path / "df.p").exists()


def test_text_of_another_encoding_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.tsv").write_bytes("1\tcaf\xe9\n".encode("latin-1"))
    assert main([str(tmp_path / "train.tsv"), "--column=1", str(tmp_path / "df.p")]) == 2
    assert "train.tsv cannot be read" in capsys.readouterr().err
