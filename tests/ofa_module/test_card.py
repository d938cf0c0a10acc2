"""Checkpoints of `train.py` used alone: predicted with, evaluated, converted, trained on; and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import evaluate
import train
from data.answers import AnswerConfig, read_answers
from data.prompts import PROMPTS
from data.text import Vocabulary
from data.tsv import TsvFile
from digits.__main__ import main as build_demo
from models.predictor import OFAPredictor
from models.weights.card import KEY, Card, answers_digest
from models.weights.convert import main as convert
from tasks.image_gen import ImageGenConfig, ImageGenTask
from tests.programs import SMALL
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
SIDE = 32
TRAIN = [
    *SMALL, "--image-bucket-size=8", "--criterion=adjust_label_smoothed_cross_entropy", "--optimizer=adam", "--lr=1e-3",
    "--lr-scheduler=fixed", "--code-dict-size=0", "--num-bins=10", "--imagenet-default-mean-and-std", "--cpu",
    f"--patch-image-size={SIDE}", "--max-update=1", "--batch-size=4", "--disable-validation", "--no-epoch-checkpoints",
    "--entangle-position-embedding", "--num-workers=0",
]  # fmt: skip
OPTIONS = {"selected_cols": "0,5,2,3,4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`gone`: where the run below found its files; `here`: the rows, moved after it; `swapped`: another vocabulary."""
    folder = tmp_path_factory.mktemp("card")
    assert (
        build_demo(
            [str(folder / "gone"), "--tasks=vqa_gen,caption", "--train=4", "--val=2", "--test=3", f"--size={SIDE}"]
        )
        == 0
    )
    for name in ("gone/BPE", "swapped"):
        shutil.copytree(ROOT / "digits/BPE", folder / name)
    lines = (folder / "swapped/dict.txt").read_text().splitlines()
    (folder / "swapped/dict.txt").write_text("\n".join([*lines[:9], lines[10], lines[9], *lines[11:]]) + "\n")
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder):
    """One update of a question answerer, whose vocabulary, rows and candidates were moved afterward."""
    data = folder / "gone/vqa_data"
    train.main([
        f"{data}/vqa_train.tsv,{data}/vqa_val.tsv", "--task=vqa_gen", "--selected-cols=0,5,2,3,4", *TRAIN,
        f"--bpe-dir={folder}/gone/BPE", f"--ans2label-file={data}/trainval_ans2label.pkl", "--prompt-type=prev_output",
        "--add-object", "--max-src-length=40", f"--save-dir={folder}/saved", '--eval-args={"beam":2}',
    ])  # fmt: skip
    (folder / "gone").rename(folder / "here")
    return shutil.copy(folder / "saved/checkpoint_last.pt", folder / "alone.pt")


@pytest.fixture(scope="module")
def plain(checkpoint, folder):
    """The same without a card, as earlier versions wrote it."""
    state = load_checkpoint(checkpoint)
    del state[KEY]
    torch.save(state, folder / "plain.pt")
    return folder / "plain.pt"


def answers_of(folder):
    return read_answers(AnswerConfig(ans2label_file=f"{folder}/here/vqa_data/trainval_ans2label.pkl"))


def evaluation(folder, checkpoint, results, *more, **overrides):
    """Records of an evaluation; what is not given comes from the checkpoint."""
    evaluate.main([
        f"{folder}/here/vqa_data/vqa_test.tsv", f"--path={checkpoint}", "--task=vqa_gen", "--gen-subset=test", "--cpu",
        "--num-workers=0",
        f"--results-path={results}", f"--model-overrides={ {**OPTIONS, **overrides} }", *more,
    ])  # fmt: skip
    return json.loads((results / "test_predict.json").read_text())


def caption(folder, save_dir, *more, bpe_dir=ROOT / "digits/BPE"):
    """Trains a captioner."""
    data = folder / "here/caption_data"
    train.main([
        f"{data}/caption_stage1_train.tsv,{data}/caption_val.tsv", "--task=caption", "--selected-cols=0,4,2", *TRAIN,
        f"--bpe-dir={bpe_dir}", f"--save-dir={save_dir}", "--reset-optimizer", "--reset-dataloader", "--reset-meters",
        *more,
    ])  # fmt: skip
    return save_dir / "checkpoint_last.pt"


def only_plain(value):
    if isinstance(value, dict):
        return all(type(name) is str and only_plain(part) for name, part in value.items())
    return all(map(only_plain, value)) if type(value) is list else type(value) in (str, int, float, bool, type(None))


def test_a_run_says_what_it_was(checkpoint, folder):
    content = torch.load(checkpoint, weights_only=True)[KEY]
    assert only_plain(content) and str(folder) not in json.dumps(content)
    assert content["task"] == "vqa_gen" and content["picture"]["side"] == SIDE
    assert content["vocabulary"]["size"] == 1995 + 5 + 10 and content["vocabulary"]["bpe"] == "gpt2"
    assert content["prompts"]["vqa_gen"] == PROMPTS["vqa_gen"]["gpt2"]
    assert content["candidates"] == {
        "digest": answers_digest(answers := answers_of(folder)), "count": len(answers), "answers": answers
    }  # fmt: skip
    assert content["decoding"] == {"beam": 2, "unnormalized": True}
    assert {"prompt_type": "prev_output", "add_object": True, "max_src_length": 40}.items() <= content[
        "options"
    ].items()


def test_options_that_only_sampling_takes_are_no_mistake_of_a_task_that_samples(folder):
    eval_args = '{"beam":24,"min_len":1024,"max_len_a":0,"max_len_b":1024,"sampling_topk":256,"temperature":1.0}'
    cfg = OmegaConf.structured(ImageGenConfig(eval_args=eval_args, code_dict_size=64, num_bins=0))
    cfg._name = "image_gen"
    task = ImageGenTask(cfg, Vocabulary.load(folder / "swapped", code_dict_size=64, num_bins=0))
    assert task.card().decoding == {"sampling": True, **json.loads(eval_args)} and task.card().candidates is None
    cfg.eval_args = '{"beams": 3}'
    with pytest.raises(UserError, match="--eval-args: there is no decoding option 'beams'"):
        task.card()


def test_it_is_used_without_any_other_file(checkpoint, plain, folder, tmp_path):
    assert not Path(load_checkpoint(checkpoint)["cfg"]["task"]["ans2label_file"]).exists()
    predictor = OFAPredictor.load(checkpoint, "cpu")
    image = Image.new("RGB", (40, 30), (200, 0, 0))
    found = predictor.answer(image, "what color is it?", objects="zero")
    assert found.text in answers_of(folder)
    told = OFAPredictor.load(plain, "cpu", ans2label_file=folder / "here/vqa_data/trainval_ans2label.pkl")
    assert told.answer(image, "what color is it?", objects="zero") == found
    with pytest.raises(UserError, match="trainval_ans2label.pkl, which is not there: load it with ans2label_file="):
        OFAPredictor.load(plain, "cpu").answer(image, "what?")
    assert predictor.description.decoding("vqa_gen", {}).beam == 2 and predictor.shared.imagenet_default_mean_and_std
    bare = load_checkpoint(checkpoint) | {"cfg": None}
    torch.save(bare, tmp_path / "bare.pt")  # not even the options of the run
    again = OFAPredictor.load(tmp_path / "bare.pt", "cpu", disable_entangle=False, entangle_position_embedding=True)
    assert again.answer(image, "what color is it?", objects="zero").text == found.text
    records = evaluation(folder, checkpoint, tmp_path / "alone")
    files = {"ans2label_file": f"{folder}/here/vqa_data/trainval_ans2label.pkl", "bpe_dir": f"{folder}/here/BPE"}
    assert records == evaluation(folder, plain, tmp_path / "told", **files) and len(records) == 3


@pytest.mark.parametrize("target", ["half.pt", "one.safetensors", "hf"])
def test_conversions_carry_it_along(checkpoint, target, tmp_path, folder):
    half = ["--half"] if target == "half.pt" else []
    assert convert([str(checkpoint), str(tmp_path / target), f"--bpe-dir={folder}/here/BPE", *half]) == 0
    copy = load_checkpoint(tmp_path / target)
    assert copy[KEY] == load_checkpoint(checkpoint)[KEY] and Card.read(copy, target) is not None
    predictor = OFAPredictor.load(tmp_path / target, "cpu")
    assert predictor.answer(Image.new("RGB", (9, 9)), "what?", objects="zero").text in answers_of(folder)


def test_another_vocabulary_is_refused(checkpoint, plain, folder, tmp_path, capsys):
    words = "swapped makes another vocabulary (2010 ids, digest "
    with pytest.raises(UserError) as caught:
        OFAPredictor.load(checkpoint, "cpu", bpe_dir=folder / "swapped")
    assert words in str(caught.value) and "pass bpe_dir=..." in str(caught.value)
    for more, overrides, option in (
        ([], {"bpe_dir": f"{folder}/swapped"}, "--model-overrides: bpe_dir="),
        ([f"--bpe-dir={folder}/swapped"], {}, "--bpe-dir="),
    ):
        with pytest.raises(SystemExit):
            evaluation(folder, checkpoint, tmp_path, *more, **overrides)
        said = capsys.readouterr().err
        assert words in said and option in said and "alone.pt was trained with" in said
    with pytest.raises(SystemExit):
        caption(folder, tmp_path, f"--restore-file={checkpoint}", bpe_dir=folder / "swapped")
    said = capsys.readouterr().err
    assert words in said and "pass the --bpe-dir, --code-dict-size and --num-bins it was trained with" in said
    with pytest.raises(SystemExit):  # the code in front of the bins: more rows, which would have been appended
        caption(folder, tmp_path, f"--restore-file={checkpoint}", "--code-dict-size=4")
    assert "makes another vocabulary (2014 ids" in capsys.readouterr().err and not list(tmp_path.glob("*.pt"))
    assert convert([str(checkpoint), str(tmp_path / "hf"), f"--bpe-dir={folder}/swapped"]) == 2
    assert OFAPredictor.load(plain, "cpu", bpe_dir=folder / "swapped").vocab.num_bins == 10  # nothing tells
    state = load_checkpoint(checkpoint)
    state[KEY]["vocabulary"]["digest"] = "0" * 64
    torch.save(state, tmp_path / "own.pt")
    with pytest.raises(
        UserError, match="No folder here makes the vocabulary of .*own.pt .2010 ids, digest 0{12}.: pass"
    ):
        OFAPredictor.load(tmp_path / "own.pt", "cpu")
    with pytest.raises(SystemExit):
        evaluation(folder, tmp_path / "own.pt", tmp_path)
    assert "pass --bpe-dir=..." in capsys.readouterr().err


def test_other_images_candidates_and_prompts_are_refused_or_overridden(
    checkpoint, folder, tmp_path, capsys, monkeypatch
):
    (tmp_path / "few.txt").write_text("yes\nno\n")
    for flag, words in (
        ("--patch-image-size=64", "--patch-image-size is 64 in this run, and "),
        (f"--ans2label-file={tmp_path}/few.txt", "few.txt holds other answers (2) than "),
    ):
        with pytest.raises(SystemExit):
            evaluation(folder, checkpoint, tmp_path, flag)
        said = capsys.readouterr().err
        assert words in said and "--model-overrides=" in said
    asked = {"patch_image_size": 64, "ans2label_file": f"{tmp_path}/few.txt"}
    records = evaluation(folder, checkpoint, tmp_path, **asked)
    assert {record["answer"] for record in records} <= {"yes", "no"}
    assert "Using the override." in capsys.readouterr().out
    predictor = OFAPredictor.load(checkpoint, "cpu", **asked)
    assert predictor.answer(Image.new("RGB", (9, 9)), "what?").text in ("yes", "no")
    state = load_checkpoint(checkpoint)
    state[KEY]["candidates"]["answers"] = None  # as of a list too long to be kept
    state["cfg"]["task"]["ans2label_file"] = f"{tmp_path}/few.txt"
    torch.save(state, tmp_path / "long.pt")
    with pytest.raises(UserError, match=r"few.txt holds other answers \(2\) than .*long.pt .*ans2label_file="):
        OFAPredictor.load(tmp_path / "long.pt", "cpu").answer(Image.new("RGB", (9, 9)), "what?")
    with pytest.raises(SystemExit):
        evaluation(folder, tmp_path / "long.pt", tmp_path)
    assert "few.txt holds other answers (2)" in capsys.readouterr().err
    monkeypatch.setitem(PROMPTS, "vqa_gen", {"gpt2": " q: {question}"})
    with pytest.raises(UserError, match="was trained with the prompt ' {question}'"):
        OFAPredictor.load(checkpoint, "cpu")
    with pytest.raises(SystemExit):
        evaluation(folder, checkpoint, tmp_path)
    assert "was trained with the prompt ' {question}'" in capsys.readouterr().err


def test_training_goes_on_for_another_task_under_its_own_card(checkpoint, plain, folder, tmp_path):
    saved = caption(folder, tmp_path / "card", f"--restore-file={checkpoint}", "--num-bins=15")
    content = load_checkpoint(saved)[KEY]
    assert (content["task"], content["candidates"], content["vocabulary"]["num_bins"]) == ("caption", None, 15)
    assert content["decoding"]["beam"] == 5 and content["prompts"] == {"caption": PROMPTS["caption"]["gpt2"]}
    rows = TsvFile(folder / "here/caption_data/caption_val.tsv", "4")
    assert len(rows) == 2 and OFAPredictor.load(saved, "cpu").caption(Image.new("RGB", (9, 9)), beam=1, max_len_b=2)
    assert KEY in load_checkpoint(caption(folder, tmp_path / "plain", f"--restore-file={plain}"))
