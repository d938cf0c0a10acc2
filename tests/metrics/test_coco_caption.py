import gc
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import metrics
from metrics import coco_caption, coco_java
from metrics.coco_caption import NO_JAVA_KEY, main, score_captions
from utils.errors import UserError

REWARDS = json.loads((Path(__file__).parents[1] / "golden" / "losses_tiny.json").read_text())["rewards"]
HYPOTHESES = ['There is "A Man" (riding), on a  wave; it\'s big!', *REWARDS["corpus_mode"]["hypotheses"][1:]]
# pycocoevalcap's tokenizer and scorers called directly on HYPOTHESES and REWARDS["corpus"].
WITH_JAVA = {
    "Bleu_1": 0.6969696969591368,
    "Bleu_2": 0.6297235299122033,
    "Bleu_3": 0.5907917136742379,
    "Bleu_4": 0.5597846338091689,
    "METEOR": 0.4495481570401668,
    "ROUGE_L": 0.7482624607151461,
    "CIDEr": 1.9863338127039722,
}


def predictions(captions: list[str]) -> list[dict[str, str]]:
    return [{"image_id": str(i), "caption": caption} for i, caption in enumerate(captions)]


def coco(references: list[list[str]]) -> dict[str, Any]:
    records = [{"image_id": str(i), "caption": text} for i, texts in enumerate(references) for text in texts]
    return {"images": [], "annotations": records}


pytestmark = pytest.mark.java


@pytest.fixture
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_without_pycocoevalcap_the_own_scorer_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.delattr(metrics, "coco_java")
    monkeypatch.delitem(sys.modules, "metrics.coco_java")
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    scores = score_captions(predictions(HYPOTHESES), coco(REWARDS["corpus"]))
    assert list(scores) == [NO_JAVA_KEY] and "pip install pycocoevalcap" in caplog.text


def test_scores_of_the_machine_at_hand(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    annotations = tmp_path / "annotations.json"
    content = coco([*REWARDS["corpus"], ["an image", "nobody predicted"]])
    annotations.write_text(json.dumps(content))
    scores = score_captions(predictions(HYPOTHESES), annotations)
    scores.pop("SPICE", None)  # only where its models are installed
    if shutil.which("java") is None:
        assert scores == {NO_JAVA_KEY: pytest.approx(2.0779575463657296, abs=1e-6)}
    else:
        assert scores == pytest.approx(WITH_JAVA, abs=1e-9)
        assert list(scores) == list(WITH_JAVA)
    assert capfd.readouterr().out == ""


def test_tokens_do_not_shift_between_captions() -> None:
    captions = {"7": ["Two\u2028dogs\nrun!", ""], "8": ["caf\xe9 -- at 5 o'clock..."]}
    grouped = coco_caption._captions(
        [{"image_id": int(image), "caption": text} for image, texts in captions.items() for text in texts],
        "",
        "",
    )
    if shutil.which("java") is None:
        assert grouped == {"7": ["Two dogs run!", ""], "8": ["caf\xe9 -- at 5 o'clock..."]}
    else:
        assert coco_java.tokenize(grouped) == {"7": ["two dogs run", ""], "8": ["caf\xe9 at 5 o'clock"]}


@pytest.mark.usefixtures("without_java")
def test_without_java_own_cider_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    golden = REWARDS["corpus_mode"]
    captions = [text.capitalize() + "." for text in golden["hypotheses"]]
    scores = score_captions(predictions(captions), coco(REWARDS["corpus"]))
    assert scores == {NO_JAVA_KEY: pytest.approx(golden["mean"], abs=1e-6)}
    assert "No Java" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize("works", [True, False])
def test_spice_is_optional(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, works: bool) -> None:
    class Fake:
        def compute_score(self, references: Any, hypotheses: Any) -> tuple[float, list[float]]:
            if not works and isinstance(self, FakeSpice):
                raise subprocess.CalledProcessError(1, "java")
            return 0.5, [0.5]

    class FakeSpice(Fake):
        pass

    monkeypatch.setattr(coco_java, "Meteor", Fake)
    monkeypatch.setattr(coco_java.spice, "Spice", FakeSpice)
    monkeypatch.setattr(coco_java, "_spice_is_installed", lambda: True)
    scores = coco_java.scores({"1": ["a dog"]}, {"1": ["a dog", "dogs"]})
    assert scores["METEOR"] == 0.5 and scores.get("SPICE") == (0.5 if works else None)
    assert ("SPICE is skipped" in caplog.text) is not works


def test_an_interruption_of_meteor_does_not_wait_for_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    class Interrupted:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def compute_score(self, references: Any, hypotheses: Any) -> None:
            self.lock.acquire()
            raise KeyboardInterrupt

        def __del__(self) -> None:
            ended.append(self.lock.acquire(timeout=1))

    monkeypatch.setattr(coco_java, "Meteor", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        coco_java.scores({"1": ["a dog"]}, {"1": ["a dog", "dogs"]})
    gc.collect()
    assert ended == [True]


def test_broken_java_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"Java failed to tokenize the captions \(no memory\)"):
        score_captions(predictions(["a dog"]), coco([["a dog"]]))


@pytest.mark.usefixtures("without_java")
def test_integer_ids_match_string_ids() -> None:
    annotations = {"annotations": [{"image_id": i, "caption": f"dog {i}"} for i in range(3)]}
    scores = score_captions(predictions(["dog 0", "dog 1", "dog 2"]), annotations)
    assert scores[NO_JAVA_KEY] > 0


@pytest.mark.usefixtures("without_java")
@pytest.mark.parametrize(
    "result, annotations, message",
    [
        (
            [{"image_id": "9", "caption": "a"}],
            coco([["a"]]),
            "1 of the 1 images of the result have no caption",
        ),
        (predictions(["a", "b"]), coco([["a"]]), r"1 of the 2 images .* \(the first is 1\)"),
        ([], coco([["a"]]), "The result holds no captions"),
        (predictions(["a"]) * 2, coco([["a"]]), "The result has 2 captions of image 0; keep one"),
        ({"image_id": "0"}, coco([["a"]]), "the result must be a list of"),
        ([{"image_id": "0"}], coco([["a"]]), "the result must be a list of"),
        (predictions(["a"]), {"images": []}, "the annotations must be a COCO file"),
        (predictions(["a"]), {"annotations": [{"image_id": "0", "caption": 3}]}, "the annotations must be"),
    ],
)
def test_bad_input_is_named(result: Any, annotations: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_captions(result, annotations)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    paths = tmp_path / "result.json", tmp_path / "annotations.json"
    paths[0].write_text(json.dumps(predictions(["a dog", "a cat"])))
    paths[1].write_text(json.dumps(coco([["a dog"], ["two cats"]])))
    return str(paths[0]), str(paths[1])


@pytest.mark.usefixtures("without_java")
def test_command_line_prints_or_writes(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(files)
    printed = capsys.readouterr().out
    assert list(json.loads(printed)) == [NO_JAVA_KEY]
    main([*files, str(tmp_path / "out.json")])
    assert capsys.readouterr().out == ""
    assert (tmp_path / "out.json").read_text() == printed
    assert printed.startswith('{\n    "CIDEr-D')


@pytest.mark.parametrize("count", [0, 1, 4])
def test_other_argument_counts_are_usage_errors(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["file.json"] * count)
    assert stop.value.code == 2
    assert "usage: python -m metrics.coco_caption" in capsys.readouterr().err


@pytest.mark.usefixtures("without_java")
@pytest.mark.parametrize(
    "broken, content, message",
    [
        (0, None, "Cannot read"),
        (1, None, "Cannot read"),
        (0, "[{", "is not JSON"),
        (1, "\xff", "is not JSON"),
        (1, "[]", "must be a COCO file"),
        (1, '{"annotations": [{"image_id": "5", "caption": "a"}]}', "2 of the 2 images"),
    ],
)
def test_command_line_says_what_is_wrong(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], broken: int, content: str | None, message: str
) -> None:
    Path(files[broken]).unlink()
    if content is not None:
        Path(files[broken]).write_text(content, encoding="latin-1")
    with pytest.raises(SystemExit) as stop:
        main(files)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert message in captured.err and captured.err.count("\n") == 1


@pytest.mark.usefixtures("without_java")
def test_unwritable_output_is_named(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*files, "/nonexistent/out.json"])
    assert "Cannot write /nonexistent/out.json" in capsys.readouterr().err
