"""The predictor with arguments that make no sense: every public method answers with one sentence, a `UserError`."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.predictor import OFAPredictor, Prediction, read_image
from models.predictor.arguments import answer_sets, check_count, pick_device
from utils.errors import UserError


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


CASES = Path(__file__).parents[2] / "cases"
IMAGE = Image.new("RGB", (40, 30), (200, 30, 60))
JP2 = file_of(Image.linear_gradient("L"), "JPEG2000")  # of half of it Pillow makes a black image
QUICK = dict(beam=1, max_len_b=3)
# What is neither an image nor a text, nor a list of them.
NONSENSE = [None, 7, 0.5, True, {"a": 1}, {"a"}, object(), [None], [7], [[]], [["a"]], [["a"], "b"], iter("ab")]
NO_TEXTS = [*NONSENSE, "", " ", "?!", "a \ud800", ["a", ""], ["a", None], b"text", IMAGE, [IMAGE], np.zeros(3)]
NO_IMAGES = [
    *NONSENSE, "", ["", IMAGE], [IMAGE, None], "what is it?", b"", b"text", "\0", "a" * 5000, np.zeros(3),
    np.zeros((2, 2, 3)), np.zeros((0, 2, 3), np.uint8), Image.new("I", (3, 3)), Image.new("F", (3, 3)),
    Image.new("RGB", (0, 3)), Path("/nowhere"), "/", "/dev/zero", JP2[: len(JP2) // 2],
]  # fmt: skip
NO_COUNTS = [0, -1, "2", 2.5, None, True, float("nan"), [1], np.float32(2)]
NO_SETS = [
    "red",
    "",
    b"red",
    7,
    {"a": 1},
    [""],
    ["a", " "],
    ["a", "\ud800"],
    ["a", None],
    ["a", 7],
    [["a"], []],
    [["a"], "b"],
    [None],
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, save_small_network):
    return save_small_network(tmp_path_factory.mktemp("arguments") / "small.pt")


@pytest.fixture(scope="module")
def p(checkpoint):
    return OFAPredictor.load(checkpoint, "cpu")


def calls(p):
    """name -> (call, number of images among its two first arguments: it takes images first, then a text)."""
    return {
        "caption": (lambda image, _: p.caption(image, **QUICK), "image"),
        "answer": (lambda image, text: p.answer(image, text, **QUICK), "both"),
        "answer_closed": (lambda image, text: p.answer(image, text, ["red", "blue"]), "both"),
        "ground": (lambda image, text: p.ground(image, text, beam=1), "both"),
        "entail": (lambda image, text: p.entail(image, text), "both"),
        "classify": (lambda image, _: p.classify(image, ["red", "blue"]), "image"),
        "summarise": (lambda _, text: p.summarise(text, **QUICK), "text"),
        "generate": (lambda image, text: p.generate(image, text, **QUICK), "text"),
        "draw": (lambda _, text: p.draw(text, vqgan=("a", "b")), "text"),
    }


METHODS = list(calls(None))


@pytest.mark.parametrize("method", METHODS)
def test_no_text_and_no_image_is_answered(p, method):
    call, needs = calls(p)[method]
    for nonsense in NO_TEXTS if needs in ("text", "both") else ():
        with pytest.raises(UserError) as caught:
            call(IMAGE, nonsense)
        assert "Error" not in str(caught.value) and len(str(caught.value)) < 300
    for nonsense in NO_IMAGES if needs in ("image", "both") else ():
        with pytest.raises(UserError):
            call(nonsense, "what is it?")
    if needs == "both":  # swapped
        with pytest.raises(UserError):
            call("what is it?", IMAGE)


def test_only_generate_takes_none_for_an_image(p):
    assert isinstance(p.generate(None, "what is it?", **QUICK), Prediction)
    assert len(p.generate([IMAGE, None], "what is it?", **QUICK)) == 2
    with pytest.raises(UserError, match=r"images is None: give a path, bytes, a Pillow image or an array"):
        p.caption(None)
    with pytest.raises(UserError, match=r"images\[1\] is None"):
        p.answer([IMAGE, None], "what is it?")
    for nonsense in NO_IMAGES:
        if nonsense is None or (isinstance(nonsense, list) and None in nonsense):
            continue
        with pytest.raises(UserError):
            p.generate(nonsense, "what is it?", **QUICK)


def test_optional_texts(p):
    assert p.entail(IMAGE, "it is red", "").text and p.answer(IMAGE, "what?", ["a"], "").text == "a"
    for nonsense in (7, [None, 7], b"a", IMAGE, {"a": 1}):
        with pytest.raises(UserError, match="premises"):
            p.entail(IMAGE, "it is red", nonsense)
        with pytest.raises(UserError, match="objects"):
            p.answer(IMAGE, "what?", ["a"], nonsense)


@pytest.mark.parametrize("nonsense", NO_SETS, ids=repr)
def test_candidates_that_are_no_set(p, nonsense):
    with pytest.raises(UserError, match=r"candidates|names"):
        p.answer(IMAGE, "what?", nonsense)
    with pytest.raises(UserError, match="names"):
        p.classify(IMAGE, nonsense)


def test_candidates_count_once_whatever_holds_them(p):
    once = p.classify(IMAGE, ["red", "blue"])
    for names in (["red", "red", "blue"], ("red", "blue", "blue"), np.array(["red", "blue"]), iter(["red", "blue"])):
        assert p.classify(IMAGE, names) == once
    assert sorted(x.text for x in p.classify(IMAGE, {"red", "blue"})) == ["blue", "red"]
    assert p.answer(IMAGE, "what?", ["red", "red"]) == Prediction("red", 1.0)


def test_candidates_of_each_question(p):
    sets = [["red", "blue"], ["one", "two", "three"], ["red", "blue"]]
    questions = ["what color?", "how many?", "what else?"]
    found = p.answer(IMAGE, questions, sets)
    single = [p.answer(IMAGE, question, names) for question, names in zip(questions, sets, strict=True)]
    assert [x.text for x in found] == [x.text for x in single]
    assert [x.score for x in found] == pytest.approx([x.score for x in single], rel=1e-4)
    assert [x.text for x in p.answer(IMAGE, "what?", [["red"], ("blue",)])] == ["red", "blue"]
    with pytest.raises(UserError, match="There are 3 questions and 2 candidates"):
        p.answer(IMAGE, questions, sets[:2])


@pytest.mark.parametrize("nonsense", NO_COUNTS, ids=repr)
def test_counts(p, checkpoint, nonsense):
    with pytest.raises(UserError, match="n_best must be a positive integer"):
        p.ground(IMAGE, "the sea", nonsense)
    with pytest.raises(UserError, match="top_k must be a positive integer"):
        p.classify(IMAGE, ["a"], nonsense)
    with pytest.raises(UserError, match="n must be a positive integer"):
        p.draw("a cat", nonsense, ("a", "b"))
    with pytest.raises(UserError, match="batch_size must be a positive integer"):
        OFAPredictor.load(checkpoint, "cpu", batch_size=nonsense)
    if nonsense is not None:
        with pytest.raises(UserError, match="patch_image_size must be a positive integer"):
            OFAPredictor.load(checkpoint, "cpu", patch_image_size=nonsense)
    assert check_count("n", np.int64(3)) == 3


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(device="gpu"), "device='gpu' is unknown: choose auto, cpu or cuda"),
        (dict(device="cuda:99"), "is not available on this machine"),
        (dict(device="meta"), "is unknown"),
        (dict(device=None), "is unknown"),
        (dict(device=0), "is unknown"),
        (dict(device=""), "is unknown"),
        (dict(dtype=16), "dtype=16 is unknown"),
        (dict(dtype=None), "dtype=None is unknown"),
        (dict(ema="yes"), "ema must be True, False or None"),
        (dict(vqgan="last.ckpt"), r"vqgan must be a pair \(checkpoint, yaml\)"),
        (dict(vqgan=("last.ckpt", None)), "must be a path, not None"),
        (dict(vqgan=[]), "vqgan must be a pair"),
        (dict(bpe_dir=7), "bpe_dir must be a text"),
        (dict(bpe_dir="/nowhere"), "/nowhere"),
        (dict(bpe="french"), "bpe must be gpt2 or bert, not 'french'"),
        (dict(ans2label_file=[1]), "ans2label_file must be a text"),
        (dict(prompt_type=False), "prompt_type must be a text"),
        (dict(max_src_length="many"), "max_src_length must be a positive integer"),
        (dict(max_image_pixels=0), "max_image_pixels must be a positive integer"),
        (dict(num_bins=-1), "num_bins must be an integer of at least 0"),
        (dict(num_bins=10**12), "num_bins is 1000000000000: choose 0 to|No vocabulary here has the 59457 ids"),
        (dict(encoder_layers=0), r"holds a model of width .*; expected width .* with 0\+"),
        (dict(dropout="much"), "dropout must be a number"),
        (dict(add_object=1), "add_object must be True or False"),
        (dict(imagenet_default_mean_and_std="no"), "must be True or False"),
    ],
)
def test_wrong_arguments_of_load(checkpoint, arguments, words):
    with pytest.raises(UserError, match=words):
        OFAPredictor.load(checkpoint, **{"device": "cpu", **arguments})


@pytest.mark.parametrize("path", [None, 7, "", [], b"a.pt", "/nowhere.pt", "/", Path("/"), "a" * 5000])
def test_wrong_paths_of_load(path):
    with pytest.raises(UserError):
        OFAPredictor.load(path, "cpu")


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("No CUDA GPUs")))
    with pytest.raises(UserError, match="device='cuda' is not available on this machine: choose auto or cpu"):
        pick_device("cuda")


@pytest.mark.parametrize("decoding", [dict(beam=object()), dict(beam={1}), dict(lenpen="x"), dict(beam=0), dict(x=1)])
def test_wrong_decoding(p, decoding):
    for call in (lambda: p.caption(IMAGE, **decoding), lambda: p.generate(None, "a", **decoding)):
        with pytest.raises(UserError):
            call()


def test_empty_lists_have_empty_answers(p):
    assert p.caption([]) == p.summarise([]) == p.answer([], "what?") == p.answer(IMAGE, [], ["a"]) == []
    assert answer_sets("names", ["a"]).names == ("a",)


def test_a_text_too_long_for_the_model(p):
    for text in ("word " * 1100, ["what?", "word " * 1100]):
        with pytest.raises(UserError, match="is longer than the 1024 the model has positions for"):
            p.generate(IMAGE, text, **QUICK)


def test_images_are_read_as_they_are_meant():
    data = (CASES / "exif6.jpg").read_bytes()
    with Image.open(CASES / "exif6.jpg") as opened:
        forms = [read_image(CASES / "exif6.jpg"), read_image(data), read_image(opened)]
        assert opened.size == (96, 48)  # the caller's own is left alone
    assert {image.size for image in forms} == {(48, 96)} and read_image(forms[0]).size == (48, 96)
    for image in forms[1:]:
        assert np.array_equal(np.asarray(image), np.asarray(forms[0]))
    drawing = CASES / "rgba_black_on_transparent.png"
    assert set(np.asarray(read_image(drawing)).ravel()) == {0, 255}
    with Image.open(drawing) as opened:
        assert set(np.asarray(read_image(opened)).ravel()) == {0, 255}
    assert len(np.unique(np.asarray(read_image(CASES / "gray16.png")))) == 96


def test_large_and_cut_off_images(caplog, checkpoint):
    with pytest.raises(UserError, match="bomb.png cannot be used: the image has 20000 x 20000 = 400000000 pixels"):
        read_image(CASES / "bomb.png")
    small = OFAPredictor.load(checkpoint, "cpu", max_image_pixels=99)
    for image in (file_of(IMAGE), IMAGE, np.asarray(IMAGE)):
        with pytest.raises(UserError, match="40 x 30 = 1200 pixels, more than the 99"):
            small.caption(image)
    assert read_image(CASES / "trunc_half.jpg").size == (200, 200)
    assert "trunc_half.jpg is cut off or damaged: using the readable part." in caplog.text
