"""Scores beside chance and the page of images, from answers made up for a tiny demo dataset."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import decode_base64, decode_image
from data.tsv import TsvFile
from digits import page
from digits.__main__ import main as build_demo
from digits.results import EXACT, RUNS, Run, read_run
from digits.tasks import TASKS

ROWS = 5  # of every file
RUN = {run.file: run for run in RUNS}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    assert build_demo([str(out), "--train=1", f"--val={ROWS}", f"--test={ROWS}", "--size=48"]) == 0
    return out


@pytest.fixture
def out(data: Path, tmp_path: Path) -> Path:
    (tmp_path / "data").symlink_to(data)
    return tmp_path


def rows_of(out: Path, run: Run) -> list[tuple[str, ...]]:
    file = TsvFile(out / "data" / TASKS[run.task].folder / run.file)
    return [file[number] for number in range(len(file))]


def answer(out: Path, run: Run, wrong: int = 0, scores: dict[str, float] | None = None, **more: object) -> None:
    """Writes right answers, the first `wrong` of them spoiled, and scores of 0.9 or those given."""
    truths = [run.true_answer(row) for row in rows_of(out, run)]
    said = [f"not {truth}" if number < wrong else truth for number, truth in enumerate(truths)]
    records = [{run.answer: text, **more} for text in said]
    if run.answer == "box":
        shifts = [20.0 * (number < wrong) for number in range(ROWS)]
        records = [{"box": [float(x) + d for x in t.split(",")]} for t, d in zip(truths, shifts, strict=True)]
    stem = out / "results" / run.results
    stem.parent.mkdir(parents=True, exist_ok=True)
    if run.task == "image_gen":  # the answers are the true images, or black ones
        records = [{"image": f"{number}.png"} for number in range(len(truths))]
        for number, row in enumerate(rows_of(out, run)):
            image = decode_image(decode_base64(row[2]))
            (Image.new("RGB", image.size) if number < wrong else image).save(stem.parent / f"{number}.png")
    stem.with_name(f"{stem.name}_predict.json").write_text(json.dumps(records))
    given = {m: 90.0 if m.startswith("rouge") else 0.9 for m in run.metrics if m != EXACT} if scores is None else scores
    stem.with_name(f"{stem.name}_scores.json").write_text(json.dumps(given))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_all_tasks_are_in_the_table_and_on_the_page(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in RUNS:
        answer(out, run, probability=0.5)
    answer(out, RUN["caption_test.tsv"], wrong=1, scores={"Bleu_4": 0.5, "CIDEr-D (own scorer, no Java)": 7.25})
    assert page.main([str(out)]) == 0
    table = (out / "scores.md").read_text()
    assert table.splitlines() == [
        "| task | metric | score | chance | rows |",
        "| --- | --- | --- | --- | --- |",
        "| caption | exact captions | 0.8000 | 0.0019 | 5 |",
        "| caption | CIDEr-D (own scorer, no Java) | 7.2500 |  | 5 |",
        "| vqa_gen | vqa_score | 0.9000 | 0.2852 | 5 |",
        *(f"| refcoco {split} | Acc@0.5 | 0.9000 | 0.5000 | 5 |" for split in ("val", "testA", "testB")),
        "| snli_ve | snli_score | 0.9000 | 0.3333 | 5 |",
        "| image_classify | score | 0.9000 | 0.1000 | 5 |",
        "| image_gen | digit | 0.9000 | 0.1000 | 5 |",
        "| image_gen | colour | 0.9000 | 0.1667 | 5 |",
        f"| gigaword | rougeL_f1 | 90.0000 | {TASKS['gigaword'].chance:.4f} | 5 |",
        "| cola | acc | 0.9000 | 0.5000 | 5 |",
        "| cola | mcc | 0.9000 | 0.0000 | 5 |",
        "| mnli | acc | 0.9000 | 0.3333 | 5 |",
        "| mrpc | acc | 0.9000 | 0.5000 | 5 |",
        "| mrpc | F1 | 0.9000 |  | 5 |",
        "| qnli | acc | 0.9000 | 0.5000 | 5 |",
        "| qqp | acc | 0.9000 | 0.5000 | 5 |",
        "| qqp | F1 | 0.9000 |  | 5 |",
        "| rte | acc | 0.9000 | 0.5000 | 5 |",
        "| sst2 | acc | 0.9000 | 0.5000 | 5 |",
    ]
    printed = capsys.readouterr()
    assert printed.out == f"{table}{out / 'page.png'}\n" and printed.err == ""
    drawn = pixels(out / "page.png")
    assert drawn.shape[0] > drawn.shape[1] > 1000
    for color in (page.RIGHT, page.WRONG):
        assert (np.abs(drawn - [int(color[i : i + 2], 16) for i in (1, 3, 5)]).sum(axis=-1) < 5).sum() > 500


def test_tasks_without_results_are_missing_and_off_the_page(out: Path) -> None:
    answer(out, RUN["sst2_dev.tsv"])
    assert page.main([str(out)]) == 0
    table = (out / "scores.md").read_text().splitlines()
    assert "| sst2 | acc | 0.9000 | 0.5000 | 5 |" in table
    assert "| refcoco testA | Acc@0.5 | missing | 0.5000 |  |" in table
    assert "| caption | exact captions | missing | 0.0019 |  |" in table
    assert len(table) == 2 + len(RUNS) and sum("missing" in line for line in table) == len(RUNS) - 1
    only_text = pixels(out / "page.png")
    answer(out, RUN["vqa_test.tsv"])
    assert page.main([str(out)]) == 0
    assert pixels(out / "page.png").shape[0] > 2 * only_text.shape[0]
    assert (only_text < 100).all(axis=-1).sum() > 500  # text, and no images


def test_grounding_has_one_row_of_images(out: Path) -> None:
    heights = []
    for split in ("testA", "val"):
        answer(out, RUN[f"refcoco_{split}.tsv"])
        assert page.main([str(out)]) == 0
        heights.append(pixels(out / "page.png").shape[0])
    assert heights[0] == heights[1] > 200


@pytest.mark.parametrize("score", [0.5, 0.1, float("nan")])
def test_a_score_not_above_chance_fails(out: Path, capsys: pytest.CaptureFixture[str], score: float) -> None:
    answer(out, RUN["rte_dev.tsv"], scores={"acc": score})
    answer(out, RUN["sst2_dev.tsv"])
    assert page.main([str(out)]) == 1
    assert capsys.readouterr().err == f"Not above chance: rte (acc {score:.4f})\n"
    assert (out / "page.png").exists() and (out / "scores.md").exists()
    assert page.main([str(out), "--allow-chance"]) == 0
    assert capsys.readouterr().err == ""


def test_captions_all_wrong_fail_whatever_cider_says(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(out, RUN["caption_test.tsv"], wrong=ROWS, scores={"CIDEr": 3.0})
    assert page.main([str(out)]) == 1
    assert "caption (exact captions 0.0000)" in capsys.readouterr().err


def test_cases_say_what_is_right(out: Path) -> None:
    run = RUN["vqa_test.tsv"]
    answer(out, run, wrong=1, probability=0.987)
    (wrong, right, *_), rows = read_run(run, out)[1], rows_of(out, run)
    truth = rows[0][3].removeprefix("1.0|!+")
    assert wrong[:3] == (rows[0][2], f"not {truth} 0.99 ({truth})", False)
    assert right[:3] == (rows[1][2], f"{rows[1][3].removeprefix('1.0|!+')} 0.99", True)
    assert wrong.image is not None and wrong.image.size == (48, 48) and wrong.boxes is None
    run = RUN["snli_ve_test.tsv"]
    answer(out, run)
    assert [case.verdict for case in read_run(run, out)[1][:3]] == ["maybe", "yes", "no"]
    run = RUN["qqp_dev.tsv"]
    answer(out, run)
    case, row = read_run(run, out)[1][0], rows_of(out, run)[0]
    assert case == (f"{row[3]}  |  {row[4]}", "no", True, None, None)


def test_boxes_hit_from_half_overlap(out: Path) -> None:
    run = RUN["refcoco_val.tsv"]
    answer(out, run, wrong=1)
    cases, row = read_run(run, out)[1], rows_of(out, run)[0]
    true = [float(edge) for edge in row[3].split(",")]
    assert cases[0].boxes == ([edge + 20 for edge in true], true) and cases[0].asked == row[2]
    assert (cases[0].right, cases[0].verdict) == (False, "IoU 0.00")
    assert (cases[1].right, cases[1].verdict) == (True, "IoU 1.00")


@pytest.mark.filterwarnings("ignore:Glyph")
def test_nonsense_of_an_untrained_model_is_drawn(out: Path) -> None:
    for file in ("caption_test.tsv", "gigaword_test.tsv"):
        answer(out, run := RUN[file], scores={"CIDEr": 0.0, "rougeL_f1": 0.0})
        nonsense = ["", "$\\frac{", "x" * 500, "\x07\u4e2d\n\n ", "_^$$"]
        path = out / "results" / f"{run.results}_predict.json"
        path.write_text(json.dumps([{run.answer: text} for text in nonsense]))
    answer(out, run := RUN["refcoco_val.tsv"], scores={"score": 0})
    path = out / "results" / f"{run.results}_predict.json"
    path.write_text(json.dumps([{"box": [40, 40, 3, 3]}] * ROWS))
    assert page.main([str(out), "--allow-chance"]) == 0


def test_broken_files_are_one_sentence(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def complaint() -> str:
        assert page.main([str(out)]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        return printed.err

    assert "no predictions" in complaint()
    run = RUN["refcoco_val.tsv"]
    answer(out, run)
    predictions, scores = (out / "results" / f"{run.results}_{kind}.json" for kind in ("predict", "scores"))
    for text in ("[1", "[]", '["score"]', '{"score": "high"}', '{"acc": 0.5}'):
        scores.write_text(text)
        assert "scores" in complaint()
    scores.unlink()
    assert str(scores) in complaint()
    answer(out, run)
    boxes: list[object] = ["1,2,3,4", [1, 2, 3], [1, 2, 3, "4"]]
    for records in ("[]", "{}", *(json.dumps([{"box": box}] * ROWS) for box in boxes)):
        predictions.write_text(records)
        assert "predict" in complaint()
    predictions.write_text("[")
    assert f"{predictions} is not JSON" in complaint()
    answer(out, run)
    (out / "data").unlink()
    assert "There is no data file" in complaint()
    path = out / "data" / "refcoco_data" / run.file
    path.parent.mkdir(parents=True)
    path.write_text("1\t2\n")
    assert f"{path} is not a file of the task refcoco" in complaint()
