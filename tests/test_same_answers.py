"""predict.py and evaluate.py give the same answers to the same rows, for every task that predict.py answers."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
import predict
from data.tasks import TASKS
from models.vqgan import VQGAN, VQGANConfig
from tests.programs import ROOT

TSV = ROOT / "tests" / "golden" / "tsv"
CODES = 16  # codes of an image of 32 pixels
FILES = {
    "caption": "caption/caption_val.tsv",
    "vqa_gen": "vqa_gen/vqa_val.tsv",
    "refcoco": "refcoco/refcoco_val.tsv",
    "snli_ve": "snli_ve/snli_ve_dev.tsv",
    "image_classify": "image_classify/imagenet_1k_val.tsv",
    "gigaword": "gigaword/dev.tsv",
}
VQA = {"ans2label_file": f"{TSV}/vqa_gen/trainval_ans2label.pkl"}
# name of a case -> command of predict.py, its flags, options that the checkpoint was trained with, flags of evaluation
CASES = {
    "caption": ("caption", [], {}, []),
    "caption in a range": ("caption", [], {"constraint_range": "4,400"}, []),
    "vqa_gen": ("answer", [], {**VQA, "add_object": True, "prompt_type": "prev_output"}, []),
    "vqa_gen without objects": ("answer", [], {**VQA, "prompt_type": "src"}, []),
    "vqa_gen freely": (
        "answer", ["--free"], {"unconstrained_training": True, "prompt_type": "prev_output"},
        ["--beam-search-vqa-eval"],
    ),
    "refcoco": ("ground", [], {"max_image_size": 64}, []),
    "snli_ve": ("entail", [], {"prompt_type": "prev_output"}, []),
    "snli_ve with captions": ("entail", [], {"add_caption": True}, []),
    "image_classify": ("classify", [], {"ans2label_file": f"{TSV}/image_classify/class2label.pkl"}, []),
    "gigaword": ("summarise", [], {}, []),
}  # fmt: skip
FIELDS = {  # of a record of predict.py -> the answer in it
    "caption": lambda record: record["caption"],
    "answer": lambda record: record["answer"],
    "ground": lambda record: record["boxes"][0],
    "entail": lambda record: record["entailment"],
    "classify": lambda record: record["labels"][0],
    "summarise": lambda record: record["summary"],
}


@pytest.fixture
def both(save_small_network, tmp_path, monkeypatch):
    """Runs both programs on a file with one checkpoint: records of predict.py, and of evaluate.py."""
    monkeypatch.chdir(tmp_path)

    def run(task, command, data, options, asked=(), evaluated=()):
        checkpoint = save_small_network(tmp_path / "small.pt", _name=task, bpe_dir=f"{ROOT}/utils/BPE", **options)
        argv = [command, str(data), *asked, f"--checkpoint={checkpoint}", "--device=cpu", "--output=out.jsonl"]
        assert predict.main(argv) == 0
        row = TASKS[task]
        columns = ",".join(str(number) for number in {**row.columns, **row.evaluated}.values())
        evaluate.main([
            str(data), f"--path={checkpoint}", f"--task={task}", f"--selected-cols={columns}", "--cpu",
            "--num-workers=0", "--batch-size=4", "--results-path=results", *evaluated,
        ])  # fmt: skip
        said = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        return said, json.loads(Path("results/test_predict.json").read_text())

    return run


def decoding_flags(task):
    """How the task's released evaluation decodes, as flags."""
    options = TASKS[task].decoding.items()
    return [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in options]


def rows_of(task, tmp_path):
    """The golden rows of a task; those that only evaluation tolerates, without words, are left out."""
    lines = (TSV / FILES[task]).read_text(encoding="utf-8").splitlines()
    asked = [list(TASKS[task].columns.values())[at] for at in (0, 2) if at < len(TASKS[task].columns)]
    lines = [line for line in lines if all(line.split("\t")[column].strip() for column in asked)]
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path, len(lines)


@pytest.mark.parametrize("case", CASES)
def test_both_programs_answer_alike(case, both, tmp_path):
    task = case.split()[0]
    command, asked, options, evaluated = CASES[case]
    flags = decoding_flags(task) if TASKS[task].decoding and "ans2label_file" not in options else []
    path, count = rows_of(task, tmp_path)
    said, written = both(task, command, path, options, asked, [*evaluated, *flags])
    answer = next(name for name in ("answer", "caption", "box", "hyp") if name in written[0])
    assert len(said) == count >= 5
    assert [FIELDS[command](record) for record in said] == [record[answer] for record in written]


def test_both_programs_draw_alike(both, tmp_path):
    sizes = dict(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32, z_channels=8)
    VQGAN(VQGANConfig(**sizes, embed_dim=8)).save(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    texts, codes = ["a red seven", "a blue three", "two green ones"], " ".join(["5"] * CODES)
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"id{number}\t{codes}\t{text}\n" for number, text in enumerate(texts)))
    said, written = both(
        "image_gen", "draw", path, {"code_image_size": 32, "max_src_length": 64, "constraint_range": "50300,50340"},
        ["--vqgan", "last.ckpt", "model.yaml", "--folder=drawn", '--decoding={"sampling_topk": 1}'],
        ["--vqgan-model-path=last.ckpt", "--vqgan-config-path=model.yaml", "--gen-images-path=kept", "--sampling",
         "--sampling-topk=1", "--beam=1"],
    )  # fmt: skip
    for own, other in zip(said, written, strict=True):
        drawn, kept = Image.open(own["pictures"][0]), Image.open(Path("kept") / other["image"])
        assert np.array_equal(np.asarray(drawn), np.asarray(kept))


def test_every_task_that_is_predicted_is_compared():
    compared = {case.split()[0] for case in CASES} | {"image_gen"}
    assert compared == {command.task for command in predict.COMMANDS.values() if command.task}
