import json
import math
import os
import pickle
import random
from collections import UserDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from metrics.cider import CiderD, count_documents, reward_text
from utils.errors import UserError
from utils.punctuation import remove_punctuation

GOLDEN = Path(__file__).parents[1] / "golden"
REWARDS = json.loads((GOLDEN / "losses_tiny.json").read_text())["rewards"]
WORDS = "a the cat dog table red big runs sits on in grass near two".split()


def random_captions(count: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Hypotheses and five references of each of `count` images, some words rare."""
    rng = random.Random(seed)

    def caption() -> str:
        words = [rng.choice(WORDS) for _ in range(rng.randrange(1, 14))]
        return " ".join([*words, f"w{rng.randrange(200)}"])

    references = [[caption() for _ in range(5)] for _ in range(count)]
    hypotheses = [caption() if rng.random() < 0.5 else rng.choice(refs) for refs in references]
    return hypotheses, references


def test_golden_rewards() -> None:
    scorer = CiderD.from_pickle(GOLDEN / "cider_df.p")
    hypotheses, references = [], []
    for samples, captions in zip(REWARDS["hypotheses"], REWARDS["references"], strict=True):
        hypotheses += [reward_text(sample) for sample in samples]
        references += [[reward_text(caption) for caption in captions]] * len(samples)
    mean, scores = scorer.score(hypotheses, references)
    np.testing.assert_allclose(scores, REWARDS["scores"], rtol=0, atol=1e-6)
    assert mean == pytest.approx(np.mean(REWARDS["scores"]), abs=1e-6)


def test_golden_validation_scores() -> None:
    scorer = CiderD.from_pickle(GOLDEN / "cider_df.p")
    hypotheses = [samples[0].strip() for samples in REWARDS["hypotheses"]]
    references = [[caption.strip() for caption in captions] for captions in REWARDS["references"]]
    scores = scorer.score(hypotheses, references)[1]
    np.testing.assert_allclose(scores, REWARDS["validation_scores"]["scores"], rtol=0, atol=1e-6)


def test_golden_corpus_mode() -> None:
    golden = REWARDS["corpus_mode"]
    mean, scores = CiderD.from_references(REWARDS["corpus"]).score(golden["hypotheses"], REWARDS["corpus"])
    np.testing.assert_allclose(scores, golden["scores"], rtol=0, atol=1e-6)
    assert mean == pytest.approx(golden["mean"], abs=1e-6)


def test_pickle_equals_counting_the_corpus() -> None:
    frequencies, images = count_documents([map(reward_text, captions) for captions in REWARDS["corpus"]])
    released = pickle.loads((GOLDEN / "cider_df.p").read_bytes())
    assert frequencies == released["document_frequency"] and images == released["ref_len"]


def test_worked_example() -> None:
    table = {"a": 80, "dog": 5, "runs": 4, "<eos>": 100, "on": 40, "grass": 6}
    table |= {"a dog": 4, "dog runs": 2, "on grass": 2}
    scorer = CiderD({tuple(ngram.split()): float(count) for ngram, count in table.items()}, math.log(100))
    hypothesis = "a dog runs <eos>"
    references = ["a dog runs on grass <eos>", "the dog runs <eos>"]
    mean, scores = scorer.score([hypothesis, hypothesis], [references, [hypothesis]])
    np.testing.assert_allclose(scores, [4.2494798285, 10.0], rtol=0, atol=1e-9)
    assert mean == pytest.approx(scores.mean())


@pytest.mark.parametrize("seed", range(3))
def test_corpus_mode_equals_pycocoevalcap(seed: int) -> None:
    hypotheses, references = random_captions(40, seed)
    results = {i: [hypothesis] for i, hypothesis in enumerate(hypotheses)}
    theirs = Cider().compute_score(dict(enumerate(references)), results)
    mean, scores = CiderD.from_references(references).score(hypotheses, references)
    assert scores.max() > 1
    np.testing.assert_allclose(scores, theirs[1], rtol=0, atol=1e-6)
    assert mean == pytest.approx(theirs[0], abs=1e-6)


def slow_cider_d(
    hypothesis: str, captions: list[str], frequencies: dict[tuple[str, ...], float], log_n: float
) -> float:
    """The formula, n-gram by n-gram."""

    def weigh(caption: str) -> tuple[list[dict[tuple[str, ...], float]], int]:
        words = caption.split()
        vectors = []
        for n in range(1, 5):
            ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
            idf = {g: log_n - math.log(max(1.0, frequencies.get(g, 0.0))) for g in ngrams}
            vectors.append({g: ngrams.count(g) * idf[g] for g in ngrams})
        return vectors, max(len(words) - 1, 0)

    total, (own, own_length) = 0.0, weigh(hypothesis)
    for caption in captions:
        other, length = weigh(caption)
        for h, r in zip(own, other, strict=True):
            norms = math.hypot(*h.values()) * math.hypot(*r.values())
            dot = sum(min(w, r[g]) * r[g] for g, w in h.items() if g in r)
            total += (dot / norms if norms else 0.0) * math.exp(-((own_length - length) ** 2) / 72)
    return 10 * total / 4 / len(captions)


def test_equals_the_formula_with_a_table_of_other_captions() -> None:
    """Words, and longer n-grams of known words, that the table lacks; numbers of references that differ."""
    hypotheses, references = random_captions(30, 7)
    references = [captions[: 1 + i % 5] for i, captions in enumerate(references)]
    frequencies, images = count_documents(random_captions(60, 8)[1])
    table = {ngram: float(count) for ngram, count in frequencies.items()}
    unknown = {tuple(caption.split()[-3:]) for captions in references for caption in captions} - set(table)
    assert len(unknown) > 5
    scores = CiderD(table, math.log(images)).score(hypotheses, references)[1]
    expected = [slow_cider_d(h, r, table, math.log(images)) for h, r in zip(hypotheses, references, strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)


def test_chunks_of_many_hypotheses(monkeypatch: pytest.MonkeyPatch) -> None:
    hypotheses, references = random_captions(25, 4)
    scorer = CiderD.from_references(references)
    whole = scorer.score(hypotheses, references)[1]
    monkeypatch.setattr("metrics.cider._CHUNK", 4)
    np.testing.assert_array_equal(scorer.score(hypotheses, references)[1], whole)


def test_empty_and_short_hypotheses_score_without_nan() -> None:
    references = [["a cat on a table"], ["a dog"], [""]]
    scorer = CiderD.from_references(references)
    mean, scores = scorer.score(["", "dog", ""], references)
    assert scores[0] == scores[2] == 0 and scores[1] > 0
    assert mean == pytest.approx(scores.mean())
    assert scorer.score([], [])[0] == 0.0


def test_bad_calls_are_refused() -> None:
    scorer = CiderD({}, 1.0)
    with pytest.raises(ValueError, match="2 hypotheses but references of 1 images"):
        scorer.score(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="Hypothesis 1 has no references"):
        scorer.score(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="at least one image"):
        CiderD.from_references([])


CAFE = ["a dog in a caf\xe9", "a dog"], [["the caf\xe9 of a dog"], ["a dog in a caf\xe9"]]
CAFE_COUNTS: dict[tuple[str, ...], float] = {("caf\xe9",): 3.0, ("a", "dog"): 2.0, ("a",): 9.0}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_of_every_age_are_read(tmp_path: Path, protocol: int) -> None:
    expected = CiderD(CAFE_COUNTS, math.log(9)).score(*CAFE)[1]
    assert not np.allclose(expected, CiderD({}, math.log(9)).score(*CAFE)[1])
    for frequencies in (CAFE_COUNTS, defaultdict(float, CAFE_COUNTS), defaultdict(int, CAFE_COUNTS)):
        path = tmp_path / "df.p"
        path.write_bytes(pickle.dumps({"document_frequency": frequencies, "ref_len": 9}, protocol))
        np.testing.assert_array_equal(CiderD.from_pickle(path).score(*CAFE)[1], expected)


def test_python_2_byte_strings_are_latin_1(tmp_path: Path) -> None:
    path = tmp_path / "df.p"  # U = SHORT_BINSTRING, what Python 2 wrote for a str
    path.write_bytes(b"\x80\x02}(U\x12document_frequency}U\x04caf\xe9\x85K\x03sU\x07ref_lenK\x09u.")
    expected = CiderD({("caf\xe9",): 3.0}, math.log(9)).score(*CAFE)[1]
    np.testing.assert_array_equal(CiderD.from_pickle(path).score(*CAFE)[1], expected)


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch attacked",)


def test_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.p").write_bytes(pickle.dumps({"document_frequency": {}, "ref_len": Attack()}))
    with pytest.raises(UserError, match=r"bad\.p is not a table .* \(it refers to .*system\)"):
        CiderD.from_pickle("bad.p")
    assert not Path("attacked").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"document_frequency": {}}),
        pickle.dumps({"document_frequency": {}, "ref_len": 0}),
        pickle.dumps({"document_frequency": {"dog": 1.0}, "ref_len": 3}),
        pickle.dumps({"document_frequency": UserDict(), "ref_len": 3}),
        (GOLDEN / "cider_df.p").read_bytes()[:-100],
    ],
)
def test_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.p"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.p is not a table of document frequencies"):
        CiderD.from_pickle(path)


def test_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read the document frequencies .*absent\.p: No such file"):
        CiderD.from_pickle(tmp_path / "absent.p")


def test_punctuation_is_deleted_without_a_space() -> None:
    assert remove_punctuation("a man's black-and-white dog & cat.") == "a mans blackandwhite dog  cat"
