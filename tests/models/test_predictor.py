"""The predictor: rows as in evaluation, forms of input, what a checkpoint tells and what is asked for."""

import argparse
import io
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from data.images import decode_base64, decode_image
from models.ofa import OFA, OFAConfig
from models.predictor import Box, OFAPredictor, Prediction, describe, read_image
from models.vqgan import VQGAN, VQGANConfig
from models.weights.convert import convert
from models.weights.description import ROOT, find
from tasks.caption import CaptionConfig, CaptionTask
from tasks.gigaword import GigawordConfig, GigawordTask
from tasks.image_classify import ImageClassifyConfig, ImageClassifyTask
from tasks.refcoco import RefcocoConfig, RefcocoTask
from tasks.snli_ve import SnliVeConfig, SnliVeTask
from tasks.vqa_gen import VqaGenConfig, VqaGenTask
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError

TSV = ROOT / "tests" / "golden" / "tsv"
SIDE = 64
# task -> class, options, file, columns of the dataset, options of its rows, columns the predictor is asked with
TASKS = {
    "caption": (CaptionTask, CaptionConfig, "caption/caption_val.tsv", "1,4,2", {}),
    "vqa_gen": (
        VqaGenTask, VqaGenConfig, "vqa_gen/vqa_val.tsv", "0,5,2,3,4",
        {"add_object": True, "prompt_type": "prev_output", "ans2label_file": f"{TSV}/vqa_gen/trainval_ans2label.pkl"},
    ),
    "refcoco": (RefcocoTask, RefcocoConfig, "refcoco/refcoco_val.tsv", "0,4,2,3", {}),
    "snli_ve": (
        SnliVeTask, SnliVeConfig, "snli_ve/snli_ve_dev.tsv", "0,2,3,4,5",
        {"add_caption": True, "prompt_type": "prev_output"},
    ),
    "image_classify": (
        ImageClassifyTask, ImageClassifyConfig, "image_classify/imagenet_1k_val.tsv", "0,2",
        {"imagenet_default_mean_and_std": True, "ans2label_file": f"{TSV}/image_classify/class2label.pkl"},
    ),
    "gigaword": (GigawordTask, GigawordConfig, "gigaword/dev.tsv", "0,1", {"max_src_length": 20}),
}  # fmt: skip


def network(**options):
    """A small random model; its outputs are sharpened, so that nothing hangs on a rounding error."""
    torch.manual_seed(3)
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in dict(embed_dim=32, ffn_embed_dim=32, layers=1, attention_heads=4).items()}  # fmt: skip
    model = OFA(OFAConfig.from_arch("ofa_demo", **{**sizes, **options}))
    torch.nn.init.normal_(model.encoder.embed_tokens.weight, std=0.5)
    return model.eval()


def store(path, model, task=None, **more):
    """Writes the model as training does, with the options of a task."""
    cfg = {"model": {**asdict(model.config), "_name": "ofa_demo"}, "task": task} if task else None
    save_checkpoint({"args": None, "cfg": cfg, "model": model.state_dict(), "extra_state": {}, **more}, path)
    return path


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predictor")


@pytest.fixture(scope="module")
def bare(folder, model):
    """A checkpoint that says nothing of a task."""
    return store(folder / "bare.pt", model)


@pytest.fixture(scope="module")
def predictor(bare):
    return OFAPredictor.load(bare, device="cpu", patch_image_size=SIDE)


@pytest.fixture(scope="module")
def pictures():
    with open(TSV / "caption/caption_val.tsv", encoding="utf-8") as file:
        return [decode_image(decode_base64(line.split("\t")[4])) for line in file]


def ask(predictor, task, row):
    """What the predictor says of a row, as the record and the confidence of evaluation."""
    if task == "caption":
        return {"caption": (found := predictor.caption(decode_base64(row[1]))).text}, found.score
    if task == "vqa_gen":
        found = predictor.answer(decode_base64(row[1]), row[2], objects=row[4])
        return {"answer": found.text}, found.score
    if task == "refcoco":
        found = predictor.ground(decode_base64(row[1]), row[2])
        return {"box": [found.x0, found.y0, found.x1, found.y1]}, found.score
    if task == "snli_ve":
        return {"answer": (found := predictor.entail(decode_base64(row[1]), row[2], row[3])).text}, found.score
    if task == "image_classify":
        best, *_ = predictor.classify(decode_base64(row[0]))
        return {"answer": best.text}, best.score
    return {"hyp": (found := predictor.summarise(row[0])).text}, found.score


@pytest.mark.parametrize("add_object", [True, False])
def test_images_without_objects_are_asked_as_rows_without_them(add_object, folder, model, pictures):
    """A table without the column has an empty one in training and evaluation, which the model's question ends with."""
    options = {"_name": "vqa_gen", "patch_image_size": SIDE, "add_object": add_object}
    predictor = OFAPredictor.load(store(folder / f"objects{add_object}.pt", model, options), device="cpu")
    asked, encode = [], predictor.model.encode

    def watched(**inputs):
        asked.append(predictor.vocab.decode(inputs["src_tokens"][0]))
        return encode(**inputs)

    predictor.model.encode = watched
    for objects in ({}, {"objects": ""}, {"objects": "cat"}):
        predictor.answer(pictures[0], "what?", ["red", "blue"], **objects)
    assert (asked[0] == asked[1]) == add_object and "cat" in asked[2] and "cat" not in asked[0]


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_what_evaluation_makes_of_them(task, folder, model, tmp_path):
    kind, config, file, columns, options = TASKS[task]
    cfg = OmegaConf.structured(config(patch_image_size=SIDE, selected_cols=columns, **options))
    cfg.data, cfg.bpe_dir = str(shutil.copy(TSV / file, tmp_path / "rows.tsv")), str(ROOT / "utils/BPE")
    stored = {**OmegaConf.to_container(cfg), "_name": task}
    predictor = OFAPredictor.load(store(folder / f"{task}.pt", model, stored), device="cpu")
    asked, encode = [], predictor.model.encode

    def watched(**inputs):
        asked.append(inputs)
        return encode(**inputs)

    predictor.model.encode = watched
    reference = kind(cfg, predictor.vocab)
    reference.load_dataset("test")
    dataset = reference.dataset("test")
    for number in range(min(3, len(dataset))):
        record, score = ask(predictor, task, dataset.rows[number])
        batch = dataset.collater([dataset[number]])
        result = reference.evaluate([predictor.model], batch, predictor.description.decoding(task, {}))
        own, expected = asked
        asked.clear()
        assert own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)
        assert {key: result.records[0][key] for key in record} == record
        confidence = result.confidences[0]
        expected_score = confidence.get("probability", np.exp(confidence.get("mean_log_prob", 0.0)))
        assert score == pytest.approx(expected_score, rel=1e-5)


@pytest.mark.parametrize("task", ["caption", "vqa_gen", "refcoco", "gigaword"])
def test_a_model_without_numbers_is_one_sentence(task, folder, tmp_path):
    broken = network()
    torch.nn.init.constant_(broken.decoder.layer_norm.weight, float("nan"))
    kind, config, file, columns, options = TASKS[task]
    if task == "vqa_gen":
        options = {"unconstrained_training": True, "val_inference_type": "beamsearch"}
    cfg = OmegaConf.structured(config(patch_image_size=SIDE, selected_cols=columns, **options))
    cfg.data, cfg.bpe_dir = str(shutil.copy(TSV / file, tmp_path / "rows.tsv")), str(ROOT / "utils/BPE")
    stored = {**OmegaConf.to_container(cfg), "_name": task}
    predictor = OFAPredictor.load(store(folder / f"{task}_nan.pt", broken, stored), device="cpu")
    reference = kind(cfg, predictor.vocab)
    reference.load_dataset("test")
    dataset = reference.dataset("test")
    with pytest.raises(UserError, match="not a number"):
        ask(predictor, task, dataset.rows[0])
    with pytest.raises(UserError, match="not a number"):
        reference.evaluate([broken], dataset.collater([dataset[0]]), predictor.description.decoding(task, {}))


def test_impossible_lengths_are_one_sentence(predictor, pictures):
    impossible = dict(max_len_b=4, min_len=4, no_repeat_ngram_size=1, constraint_range="50,52")
    with pytest.raises(UserError, match="No output of 4 to 4 tokens is possible"):
        predictor.caption(pictures[0], **impossible)
    with pytest.raises(UserError, match="No output of 4 to 4 tokens is possible"):
        predictor.ground(pictures[0], "the sea", **impossible)


def test_forms_of_images_and_order_of_results(predictor, pictures, tmp_path):
    file = io.BytesIO()
    pictures[1].save(file, format="PNG")
    pictures[0].save(tmp_path / "a.png")
    forms = [tmp_path / "a.png", file.getvalue(), np.array(pictures[2]), pictures[0], str(tmp_path / "a.png")]
    single = [predictor.generate(image, f"what {'is ' * k}this?", max_len_b=4) for k, image in enumerate(forms)]
    assert all(isinstance(found, Prediction) and 0 < found.score <= 1 for found in single)
    prompts = [f"what {'is ' * k}this?" for k in range(5)]
    predictor.batch_size = 2
    together = predictor.generate(forms[::-1], prompts[::-1], max_len_b=4)
    predictor.batch_size = 16
    assert [p.text for p in together] == [p.text for p in single[::-1]]
    assert [p.score for p in together] == pytest.approx([p.score for p in single[::-1]], rel=1e-4)
    assert predictor.caption([]) == []


def test_one_image_goes_with_many_texts_but_not_two_with_three(predictor, pictures):
    found = predictor.answer(pictures[0], ["what?", "is it red?", "where"], ["red", "blue"])
    assert [type(answer) for answer in found] == [Prediction] * 3
    with pytest.raises(UserError, match="There are 2 images and 3 questions"):
        predictor.answer(pictures[:2], ["a", "b", "c"])


@pytest.mark.parametrize(
    "image, message",
    [
        ("/nowhere.jpg", "The image /nowhere.jpg cannot be read .No such file or directory.: check the path"),
        ("https://x.org/a.jpg", "The image https://x.org/a.jpg is a URL: download it"),
        (b"text", "not a format that Pillow reads"),
        (np.zeros((4, 4), np.uint8), r"the array is uint8 \(4, 4\), not uint8 \(height, width, 3\)"),
        (np.zeros((4, 4, 3)), "the array is float64"),
        (np.zeros((0, 4, 3), np.uint8), "4 x 0 pixels"),
        (7, "it is a int, not a path"),
    ],
)
def test_bad_images_are_named(image, message):
    with pytest.raises(UserError, match=message):
        read_image(image)


def test_answers_are_the_best_candidates_or_free(predictor, pictures):
    names = ["red", "blue", "dark green"]
    ranked = predictor.classify(pictures[0], names, top_k=9)
    assert sorted(label.text for label in ranked) == sorted(names)
    assert sum(label.score for label in ranked) == pytest.approx(1, abs=1e-5)
    assert [label.score for label in ranked] == sorted((label.score for label in ranked), reverse=True)
    assert predictor.answer(pictures[0], "what?", names).text in names
    free = predictor.answer(pictures[0], "what?", max_len_b=3)
    assert free.text and free == predictor.answer(pictures[0], "what?", [], max_len_b=3)
    with pytest.raises(UserError, match=r"pass names=\[...\]"):
        predictor.classify(pictures[0])
    assert predictor.entail(pictures[0], "it is red").text in ("yes", "no", "maybe")
    with pytest.raises(UserError, match="there is no decoding option 'beams'"):
        predictor.caption(pictures[0], beams=3)


def test_free_answers_begin_after_the_decoder_prompt(bare, predictor, pictures):
    asked = OFAPredictor.load(bare, device="cpu", patch_image_size=SIDE, prompt_type="prev_output")
    found = asked.answer(pictures[0], ["what is it?", "what is it in this place?"], max_len_b=20, beam=1)
    for answer, question in zip(found, ["what is it", "what is it in this place"], strict=True):
        assert answer.text and question not in answer.text
    ended = OFAPredictor.load(bare, device="cpu", patch_image_size=SIDE, prompt_type="src")
    with pytest.raises(UserError, match=r"pass candidates=\[...\]"):
        ended.answer(pictures[0], "what?")


def test_boxes_are_in_pixels_of_the_image_best_first(predictor):
    wide = Image.new("RGB", (200, 30), (9, 90, 200))
    boxes = predictor.ground(wide, "the sea", n_best=7)
    assert len(boxes) == 7 and all(isinstance(box, Box) for box in boxes)
    assert all(0 <= x <= 200 and 0 <= y <= 30 for b in boxes for x, y in ((b.x0, b.y0), (b.x1, b.y1)))
    assert [box.score for box in boxes] == sorted((box.score for box in boxes), reverse=True)
    lists = predictor.ground([wide, wide], "the sea", n_best=2)
    assert [len(of_image) for of_image in lists] == [2, 2] and isinstance(predictor.ground(wide, "a"), Box)


def test_any_instruction_with_location_tokens_and_without_an_image(predictor, pictures):
    vocab = predictor.vocab
    ids = predictor._instruction("what is in <bin_3> <bin_999> here <bin_1000>")
    assert ids[:3] == vocab.encode(" what is in") and ids[3:5] == [vocab.bin_id(3), vocab.bin_id(999)]
    assert vocab.decode(ids[5:]) == " here <bin_1000>"
    some = predictor.generate([pictures[0], None], ["what is it?", "what is it?"], max_len_b=3)
    assert some[1] == predictor.generate(None, "what is it?", max_len_b=3) and some[0] != some[1]


def test_what_a_checkpoint_says_and_what_is_asked_for(model, bare, folder):
    with pytest.raises(UserError, match="bare.pt does not say how large its images are: pass patch_image_size=..."):
        OFAPredictor.load(bare)
    with pytest.raises(UserError, match="There is no option patch_size: choose among .*patch_image_size"):
        OFAPredictor.load(bare, patch_size=3)
    with pytest.raises(UserError, match="dtype='int8' is unknown"):
        OFAPredictor.load(bare, patch_image_size=SIDE, dtype="int8")
    flat = argparse.Namespace(task="vqa_gen", arch="ofa_demo", patch_image_size=96, prompt_type="src", bpe=None)
    found = describe({"model": model.state_dict(), "args": flat}, max_src_length=5)
    assert (found.task, found.option("patch_image_size"), found.option("bpe", "gpt2")) == ("vqa_gen", 96, "gpt2")
    cfg = {"model": flat, "task": {"_name": "caption", "patch_image_size": 80}}  # as in released files
    found = describe({"model": model.state_dict(), "args": None, "cfg": cfg})
    assert (found.task, found.option("patch_image_size"), found.option("prompt_type")) == ("caption", 80, "src")
    tiny = describe({"model": OFA(OFAConfig.from_arch("ofa_tiny", resnet_type="resnet10")).state_dict()})
    assert tiny.option("patch_image_size") == 256 and tiny.task is None
    gone = {"_name": "vqa_gen", "patch_image_size": SIDE, "ans2label_file": "../../dataset/none.pkl"}
    asked = OFAPredictor.load(store(folder / "gone.pt", model, gone), device="cpu")
    with pytest.raises(UserError, match=r"none.pkl, which is not there: load it with ans2label_file=..., or pass cand"):
        asked.answer(Image.new("RGB", (9, 9)), "what?")
    assert asked.answer(Image.new("RGB", (9, 9)), "what?", ["a"]) == Prediction("a", 1.0)
    assert find("../../utils/BPE") == ROOT / "utils/BPE" and find("../../nothing") is None


def test_the_vocabulary_is_found_or_asked_for(folder, tmp_path):
    short = network(vocab_size=777)
    path = store(tmp_path / "short.pt", short, {"_name": "caption", "patch_image_size": SIDE})
    with pytest.raises(UserError, match="No vocabulary here has the 777 ids of .*short.pt: pass bpe_dir=..."):
        OFAPredictor.load(path)
    with pytest.raises(UserError, match="bpe_dir=.* makes 59457 ids, .*short.pt has 777"):
        OFAPredictor.load(path, bpe_dir=str(ROOT / "utils/BPE"))
    small = ROOT / "digits/BPE"
    lines = len((small / "dict.txt").read_text(encoding="utf-8").splitlines())
    demo = {"_name": "caption", "patch_image_size": SIDE, "bpe_dir": "/gone", "num_bins": 10, "code_dict_size": 0}
    path = store(tmp_path / "demo.pt", network(vocab_size=lines + 15), demo)
    assert len(OFAPredictor.load(path, device="cpu").vocab) == lines + 15


def test_averaged_weights_are_used_where_validation_used_them(model, folder, pictures):
    other = {name: -x if x.is_floating_point() else x for name, x in model.state_dict().items()}
    task = {"_name": "vqa_gen", "patch_image_size": SIDE, "uses_ema": True}
    path = store(folder / "averaged.pt", model, task, extra_state={"ema": other})
    weights = [
        OFAPredictor.load(path, device="cpu", ema=ema).model.decoder.layer_norm.weight for ema in (None, True, False)
    ]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], -weights[2])


def test_other_layouts_and_bfloat16_give_the_same_words(predictor, bare, folder, pictures):
    convert(Path(bare), folder / "hf")
    convert(Path(bare), folder / "one.safetensors")
    expected = predictor.answer(pictures[:2], "what?", ["red", "blue"])
    for name in ("hf", "one.safetensors"):
        other = OFAPredictor.load(folder / name, device="cpu", patch_image_size=SIDE)
        assert other.answer(pictures[:2], "what?", ["red", "blue"]) == expected
    half = OFAPredictor.load(bare, device="cpu", patch_image_size=SIDE, dtype="bfloat16")
    assert next(half.model.parameters()).dtype == torch.bfloat16
    found = half.answer(pictures[:2], "what?", ["red", "blue"])
    assert [p.score for p in found] == pytest.approx([p.score for p in expected], abs=0.1)


def test_nothing_learns(predictor, bare):
    assert not predictor.model.training and not any(p.requires_grad for p in predictor.model.parameters())
    assert load_checkpoint(bare)["model"].keys() == predictor.model.state_dict().keys()


def test_drawing_needs_codes_and_a_vqgan(predictor, tmp_path):
    sizes = dict(ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=32, z_channels=8)
    files = (tmp_path / "last.ckpt", tmp_path / "model.yaml")
    VQGAN(VQGANConfig(**sizes, embed_dim=8, n_embed=64)).save(*files)
    codes = {"_name": "image_gen", "patch_image_size": SIDE, "code_dict_size": 64, "num_bins": 0}
    path = store(tmp_path / "draw.pt", network(vocab_size=50265 + 64, code_image_size=32), codes)
    painter = OFAPredictor.load(path, device="cpu")
    with pytest.raises(UserError, match=r"pass vqgan=\(checkpoint, yaml\)"):
        painter.draw("a cat")
    with pytest.raises(ValueError, match="the text has no words"):
        painter.draw(["a cat", " "], vqgan=files)
    torch.manual_seed(1)
    drawn = painter.draw(["a cat", "a dog on a boat"], n=3, vqgan=files)
    assert [len(of_prompt) for of_prompt in drawn] == [3, 3] and drawn[0][0].size == (32, 32)
    assert 0 < drawn[0][0].info["score"] < 1
    single = OFAPredictor.load(path, device="cpu", batch_size=1, vqgan=files)
    torch.manual_seed(1)
    again = single.draw(["a cat", "a dog on a boat"], n=3)
    same = [np.abs(np.array(a, int) - np.array(b, int)).max() for a, b in zip(drawn[1], again[1], strict=True)]
    assert max(same) <= 1 and isinstance(painter.draw("a cat", vqgan=files), Image.Image)
    with pytest.raises(UserError, match="has no location tokens"):
        painter.ground(drawn[0][0], "a cat")
