"""`prepare_for_inference`: both programs that answer call it, in every number format."""

import pytest
import torch

import evaluate
from models.ofa import OFA
from models.ofa.folding import FoldedConv2d
from models.predictor import OFAPredictor
from models.weights.description import ROOT

DEMO = ROOT / "checkpoints" / "ofa_demo.pt"
OPTIONS = {"bpe_dir": "digits/BPE", "patch_image_size": 48}


def predictor(**options) -> OFAPredictor:
    return OFAPredictor.load(DEMO, "cpu", **OPTIONS, **options)


def evaluated(*flags: str) -> OFA:
    cfg = evaluate.parse_args(["x.tsv", f"--path={DEMO}", "--task=caption", "--cpu", *flags])
    return evaluate._load(cfg.common_eval.path, {}, cfg)


@pytest.mark.parametrize(("dtype", "flags"), [("float32", ()), ("bfloat16", ("--bf16",)), ("float16", ("--fp16",))])
def test_prediction_and_evaluation_prepare_alike(dtype, flags):
    models = [predictor(dtype=dtype).model, evaluated(*flags)]
    for model in models:
        assert any(isinstance(module, FoldedConv2d) for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())
    for (name, first), second in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert first.dtype == getattr(torch, dtype) and torch.equal(first, second), name
