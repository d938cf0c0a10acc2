"""`prepare_for_inference`: both programs that answer call it, in every number format."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import predict
import train
from models.ofa import OFA
from models.ofa.folding import FoldedConv2d
from models.ofa.int8 import Int8Linear
from models.predictor import OFAPredictor
from models.weights.description import ROOT
from utils.errors import UserError

DEMO = ROOT / "checkpoints" / "ofa_demo.pt"
OPTIONS = {"bpe_dir": "digits/BPE", "patch_image_size": 48}


def predictor(**options) -> OFAPredictor:
    return OFAPredictor.load(DEMO, "cpu", **OPTIONS, **options)


def evaluated(*flags: str) -> OFA:
    cfg = evaluate.parse_args(["x.tsv", f"--path={DEMO}", "--task=caption", "--cpu", *flags])
    return evaluate._load(cfg.common_eval.path, {}, cfg)


FORMATS = {"float32": [], "bfloat16": ["--bf16"], "float16": ["--fp16"]}


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", FORMATS)
def test_prediction_and_evaluation_prepare_alike(dtype, int8):
    models = [predictor(dtype=dtype, int8=int8).model, evaluated(*FORMATS[dtype], *["--int8"] * int8)]
    for model in models:
        assert any(isinstance(module, FoldedConv2d) for module in model.modules())
        assert any(isinstance(module, Int8Linear) for module in model.modules()) == int8
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())
    for (name, first), second in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert first.dtype == getattr(torch, dtype) and torch.equal(first, second), name


def test_int8_from_the_shell(tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")
    argv = ["caption", str(tmp_path / "red.png"), f"--checkpoint={DEMO}", "--set", "bpe_dir=digits/BPE"]
    argv += ["--set", "patch_image_size=48", "--device=cpu", f"--output={tmp_path}/out.jsonl", "--int8"]
    assert predict.main(argv) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["caption"]


def test_int8_answers():
    image = np.zeros((48, 48, 3), dtype=np.uint8)
    exact, found = (predictor(int8=int8).answer(image, "what?", ["red", "blue"]) for int8 in (False, True))
    assert found.text == exact.text and found.score == pytest.approx(exact.score, abs=0.05)
    assert found.score != exact.score


def test_refusals(capsys):
    with pytest.raises(UserError, match=r"^compile and int8 cannot be combined: leave one out\.$"):
        predictor(int8=True, compile=True)
    with pytest.raises(UserError, match=r"^int8 must be True, False or None, not 8\.$"):
        predictor(int8=8)
    with pytest.raises(UserError, match=r"choose float32, bfloat16, float16 \(int8 is an option of its own\)\.$"):
        predictor(dtype="int8")
    cfg = evaluate.parse_args(["x.tsv", f"--path={DEMO}", "--task=caption", "--int8", "--compile"])
    with pytest.raises(UserError, match=r"^--int8 and --compile cannot be combined: leave one out\.$"):
        evaluate.evaluate(cfg)
    with pytest.raises(SystemExit):
        train.parse_args(["x.tsv", "--task=caption", "--arch=ofa_demo", "--int8"])
    assert "--int8" in capsys.readouterr().err.splitlines()[-1]
