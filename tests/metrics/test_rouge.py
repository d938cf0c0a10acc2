"""ROUGE sums and the scoring program of summaries."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metrics.rouge import TYPES, bootstrap_f1, main, rouge_sums

ROOT = Path(__file__).parents[2]
HYPOTHESES = ["police killed the gunmen", "police end the gunmen", "the gunmen kill police ##", ""]
REFERENCES = ["police kill the gunman", "police kill the gunman", "police kill the gunman", "police kill the gunman"]
# Counted by hand. Stems: polic kill(ed) the gunmen / gunman; `#` is no word.
RECALL = {
    "rouge1": [3 / 4, 2 / 4, 3 / 4, 0],
    "rouge2": [2 / 3, 0, 0, 0],  # no bigram of the third survives: the gunmen, gunmen kill, kill police
    "rougeL": [3 / 4, 2 / 4, 1 / 4, 0],
}


def test_sums_of_counted_summaries() -> None:
    sums = rouge_sums(HYPOTHESES, REFERENCES)
    assert list(sums) == ["rouge1_recall", "rouge2_recall", "rougeL_recall", "rouge1_f1", "rouge2_f1", "rougeL_f1"]
    for kind in TYPES:
        assert sums[f"{kind}_recall"] == (pytest.approx(100 * sum(RECALL[kind])), 4)
        assert sums[f"{kind}_f1"] == sums[f"{kind}_recall"]  # equally many words, but for the empty one


def test_recall_and_f1_differ_with_length() -> None:
    sums = rouge_sums(["a dog runs home"], ["dog"])
    assert sums["rouge1_recall"] == (100.0, 1)
    assert sums["rouge1_f1"] == (pytest.approx(40.0), 1)  # precision 1/4


def test_sums_add_up_and_nothing_is_nothing() -> None:
    parts = rouge_sums(HYPOTHESES[:1], REFERENCES[:1]), rouge_sums(HYPOTHESES[1:], REFERENCES[1:])
    for name, (total, count) in rouge_sums(HYPOTHESES, REFERENCES).items():
        assert sum(part[name][0] for part in parts) == pytest.approx(total) and count == 4
    assert set(rouge_sums([], []).values()) == {(0.0, 0)}
    with pytest.raises(ValueError):
        rouge_sums(["a"], [])


def test_bootstrap_is_near_the_mean_and_repeats() -> None:
    rng = np.random.default_rng(0)
    words = "police kill gunman in the city two dead after blast".split()
    texts = [" ".join(rng.choice(words, 8)) for _ in range(120)]
    first = bootstrap_f1(texts[:60], texts[60:])
    np.random.seed(99)
    assert bootstrap_f1(texts[:60], texts[60:]) == first
    sums = rouge_sums(texts[:60], texts[60:])
    means = {kind: sums[f"{kind}_f1"][0] / 60 / 100 for kind in TYPES}
    assert first == pytest.approx(means, abs=0.005) and min(means.values()) > 0.05
    assert any(abs(first[kind] - means[kind]) > 1e-6 for kind in TYPES)  # medians of resamples, not the means


@pytest.fixture
def result(tmp_path: Path) -> Path:
    path = tmp_path / "test_predict.json"
    records = [{"hyp": text, "ref": ref} for text, ref in zip(HYPOTHESES[:1], REFERENCES[:1], strict=True)]
    path.write_text(json.dumps(records * 20))
    return path


def test_script_prints_fractions(result: Path) -> None:
    script = ROOT / "run_scripts" / "gigaword" / "eval_rouge.py"
    done = subprocess.run([sys.executable, script, result], cwd=result.parent, capture_output=True, text=True)
    assert done.stdout == "Rouge1: 0.7500\nRouge2: 0.6667\nRougeL: 0.7500\n"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "records", ["[{", "{}", "[]", '{"hyp": "a"}', '[{"hyp": "a"}]', '[{"hyp": 1, "ref": "a"}]', None]
)
def test_user_errors_are_one_sentence(result: Path, capsys: pytest.CaptureFixture[str], records: Any) -> None:
    result.unlink()
    if records is not None:
        result.write_text(records)
    with pytest.raises(SystemExit) as stop:
        main([str(result)])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert str(result) in captured.err and captured.err.count("\n") == 1
    assert "again" in captured.err or "check the path" in captured.err
