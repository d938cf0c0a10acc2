"""`python -m models.export`: programs against the model, the folder, the example without torch, what is refused."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from digits.scene import render
from digits.tasks import TASKS
from models.export import folder as folder_module
from models.export import onnx_files, programs
from models.export.__main__ import main
from models.export.folder import check_model, check_target
from models.export.modules import ExportedEncoder, FirstStep, NextStep
from models.export.programs import ENCODER, FIRST, NEXT, TOLERANCE, difference
from models.ofa import OFA, OFAConfig
from models.ofa.compiling import compile_layers
from models.ofa.inference import prepare_for_inference
from models.predictor import OFAPredictor
from tests.programs import interpreter
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
DEMO, CASES = ROOT / "checkpoints" / "ofa_demo.pt", ROOT / "tests" / "cases"
SIDE = 48
SMALL = {f"{side}_{name}": value for side in ("encoder", "decoder")
         for name, value in dict(embed_dim=32, ffn_embed_dim=32, layers=2, attention_heads=4).items()}  # fmt: skip
VARIANTS = {
    "usual": {},
    "codes": {},
    "vit": {"resnet_type": "ViT-B/16"},
    "other positions": {"entangle_position_embedding": True, "disable_entangle": False, "scale_heads": False,
                        "interpolate_position": True, "orig_patch_image_size": 32},
    "short": {"max_target_positions": 8, "max_source_positions": 16},
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The demo's folder, what the command printed, and its programs as it has loaded them: all made once."""
    target, loaded = tmp_path_factory.mktemp("exports") / "demo", {}
    load = torch.export.load

    def load_and_keep(file):
        return loaded.setdefault(Path(file).stem, load(file))

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        patch.setattr(torch.export, "load", load_and_keep)
        assert main([str(DEMO), str(target)]) == 0
    assert loaded.keys() == {ENCODER, FIRST, NEXT}
    return target, output.getvalue(), loaded


@pytest.fixture(scope="module")
def predictor():
    return OFAPredictor.load(DEMO, "cpu")


@pytest.fixture(scope="module", params=["torch", "onnx"])
def call(request, exported, predictor):
    target, _, loaded = exported
    if request.param == "onnx":
        return onnx_files.caller(target, (ENCODER, FIRST, NEXT))
    return programs.caller(loaded, predictor.model.config.decoder_layers)


def network(**options):
    torch.manual_seed(3)
    return OFA(OFAConfig.from_arch("ofa_demo", **{**SMALL, "vocab_size": 300, **options})).eval()


@pytest.mark.parametrize("sizes", [(1, 2, 1, 2), (2, 7, 3, 1), (5, 30, 6, 4)], ids=str)
def test_programs_are_the_model_at_any_size(sizes, call, predictor):
    batch, length, prompt, steps = sizes
    found = difference(predictor.model, call, SIDE, False, batch, length, prompt, steps)
    assert found < 1e-5


def test_programs_take_the_longest_texts(call, predictor):
    assert difference(predictor.model, call, SIDE, length=1024, batch=2, prompt=1023, steps=1) < 1e-5


def test_a_wrong_program_is_noticed(call, predictor):
    def wrong(name, inputs):
        outputs = call(name, inputs)
        return [x + 0.1 if name == NEXT and i == 1 else x for i, x in enumerate(outputs)]  # keys of the first layer

    with pytest.raises(UserError, match="differ from the model by"):
        difference(predictor.model, wrong, SIDE)
    with pytest.raises(UserError, match="differ from the model by nan"):
        difference(
            predictor.model, lambda *args: [x * torch.nan if x.is_floating_point() else x for x in call(*args)], SIDE
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_modules_are_the_model(name):
    code, model = name == "codes", network(**VARIANTS[name])
    modules = {ENCODER: ExportedEncoder(model), FIRST: FirstStep(model, code), NEXT: NextStep(model, code)}

    def call(name, inputs):
        if name == NEXT:
            inputs = (inputs[0], list(inputs[1:5]), list(inputs[5:9]), inputs[9])
        return torch.utils._pytree.tree_leaves(modules[name](*inputs))

    assert difference(model, call, SIDE, code) < TOLERANCE / 100


def test_the_folder_says_all(exported, predictor):
    target, output, _ = exported
    names = {path.name for path in target.iterdir()}
    assert names == {
        "config.json", "tokenizer.json", "caption.py", "weights.bin",
        *(f"{name}.{kind}" for name in (ENCODER, FIRST, NEXT) for kind in ("onnx", "pt2")),
    }  # fmt: skip
    assert [line.split(":")[0] for line in output.splitlines()] == ["torch", "onnx", f"Wrote {target}."]
    config = json.loads((target / "config.json").read_text())
    assert config["image"] == {"side": 48, "mean": [0.5] * 3, "std": [0.5] * 3, "resize": "bicubic"}
    assert config["ids"]["bin_start"] == predictor.vocab.bin_start and config["ids"]["bins"] == 65
    assert config["prompts"]["refcoco"] == ' which region does the text " {text} " describe?'
    assert config["decoding"]["caption"]["max_len_b"] == predictor.description.decoding("caption", {}).max_len_b
    parameters = sum(x.nbytes for x in predictor.model.state_dict().values())
    assert (target / "weights.bin").stat().st_size < parameters  # each weight once, of two decoders


def test_onnx_names(exported):
    import onnx

    model = onnx.load(exported[0] / f"{NEXT}.onnx", load_external_data=False)
    shapes = {
        x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim]
        for x in (*model.graph.input, *model.graph.output)
    }
    assert shapes["tokens"] == ["batch", 1] and shapes["logits"] == ["batch", 1, 3089]
    assert shapes["past.1.value"] == ["batch", 4, "past", 32]
    assert shapes["present.1.value"] == ["batch", 4, "past + 1", 32]
    assert shapes["memory.0.key"] == ["batch", 4, "positions", 40]
    assert shapes["memory.positions"] == [1, 4, "positions", 32]


def test_the_example_captions_without_torch(exported, predictor, tmp_path):
    images = [CASES / "rgba_black_on_transparent.png", CASES / "exif6.jpg", tmp_path / "gray16.png"]
    gray = np.asarray(render(TASKS["caption"].row(2, 9, seed=1, size=96)[-1]).convert("L"), np.uint16)
    Image.fromarray(gray * 256 + 17).save(images[-1])
    images.append(tmp_path / "clear16.png")
    Image.fromarray(gray * 256 + 17).save(images[-1], transparency=int(gray[0, 0]) * 256 + 17)
    for row in range(4):
        images.append(tmp_path / f"{row}.png")
        render(TASKS["caption"].row(2, row, seed=1, size=96)[-1]).save(images[-1])
    code = "import runpy, sys; sys.modules['torch'] = None; del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"

    def say(*paths: Path | str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-I", "-c", code, exported[0] / "caption.py", *paths]
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)

    done = say(*images)
    assert done.returncode == 0, done.stderr
    found = [line.split("\t") for line in done.stdout.splitlines()]
    assert found == [[str(image), predictor.caption(image).text] for image in images]
    assert len({text for _, text in found}) > 2
    assert (say().returncode, say().stderr) == (1, "usage: python caption.py IMAGE...\n")
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(gray.astype(np.int32) * 9).save(tmp_path / "int.tiff")
    done = say("lost.png", "text.png", "int.tiff", images[0])
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 1
    assert "int.tiff cannot be read: its pixels have an unknown range (mode I)" in done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        f"{name} cannot be read" for name in ("lost.png", "text.png", "int.tiff")
    ]


def test_a_failed_export_leaves_the_earlier_one(exported, tmp_path, monkeypatch, capsys):
    target = tmp_path / "demo"
    shutil.copytree(exported[0], target)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in target.iterdir())

    def fail(*_):
        raise OSError(28, "No space left on device", "weights.bin")

    monkeypatch.setattr(programs, "trace", lambda *_: {})
    monkeypatch.setattr(folder_module, "_write_programs", fail)
    assert main([str(DEMO), str(target)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert sorted((path.name, path.stat().st_mtime_ns) for path in target.iterdir()) == before
    monkeypatch.setattr(folder_module, "_write_programs", lambda *_: {})
    assert main([str(DEMO), str(target), "--format=torch"]) == 0
    assert {path.name for path in target.iterdir()} == {"config.json", "tokenizer.json"}
    assert os.listdir(tmp_path) == ["demo"]


def test_other_folders_are_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "ofa"}')
    assert main([str(DEMO), str(tmp_path / "file")]) == 2
    assert f"error: {tmp_path}/file is a file: name a folder.\n" in capsys.readouterr().err
    assert main([str(DEMO), str(tmp_path / "mine")]) == 2
    assert "holds something other than an export: name another folder.\n" in capsys.readouterr().err
    assert main([str(DEMO), str(tmp_path / "file" / "below")]) == 2
    assert "file is not a folder" in capsys.readouterr().err
    (tmp_path / "mine" / "config.json").unlink()
    check_target(tmp_path / "mine")


def test_the_command_is_a_program(tmp_path):
    command = [interpreter(), "-m", "models.export", DEMO, tmp_path / "new", "--set", "int8=True"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("python -m models.export: error: --set int8=... cannot be")


@pytest.mark.parametrize("name", ["sample_patch_num", "dtype", "int8", "compile", "device", "batch_size", "vqgan"])
def test_options_that_no_program_has(name, tmp_path, capsys):
    assert main([str(DEMO), str(tmp_path / "new"), "--set", f"{name}=2"]) == 2
    error = capsys.readouterr().err
    assert f"--set {name}=... cannot be exported (" in error and error.endswith("): leave it out.\n")
    assert not list(tmp_path.iterdir())


def test_models_that_no_program_has():
    for model, message in (
        (network(num_images=2), "num_images=2 cannot be exported"),
        (network().half(), "dtype: weights of torch.float16 cannot be exported"),
    ):
        with pytest.raises(UserError, match=message):
            check_model(model)
    with pytest.raises(UserError, match="int8 cannot be exported"):
        check_model(prepare_for_inference(network(), int8=True))
    compiled = network()
    assert compile_layers(compiled, backend="eager")
    with pytest.raises(UserError, match="compile cannot be exported"):
        check_model(compiled)


def test_other_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys):
    target = str(tmp_path / "new")
    with pytest.raises(SystemExit):
        main([str(DEMO), target, "--format", "onnx,tflite"])
    assert "'tflite' is unknown: choose among onnx, torch" in capsys.readouterr().err
    save_checkpoint({"model": {"weight": torch.zeros(2, 2)}}, tmp_path / "other.pt")
    assert main([str(tmp_path / "other.pt"), target]) == 2
    assert "not a complete OFA model" in capsys.readouterr().err
    assert main([str(DEMO), target, "--set", "patch_image_size=800"]) == 2
    assert "800x800 pixels makes 50x50 patches" in capsys.readouterr().err
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert main([str(DEMO), target]) == 2
    assert "needs onnxscript: install the extra with `pip install -e .[export]`" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_model_for_images_writes_codes(predictor):
    config = folder_module.describe(predictor, ("onnx",), True)
    assert config["writes"] == "image codes" and config["model"]["target_limit"] == 786  # 16 x 16 cells
    assert asdict(predictor.model.config)["decoder_layers"] == config["model"]["layers"]
