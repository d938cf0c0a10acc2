"""Folders that carry their own code: loaded where there is no repository, they answer as the predictor does."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.images import standard_transform
from digits.scene import render
from digits.tasks import TASKS
from models.predictor import OFAPredictor
from models.weights.convert import convert, main
from models.weights.hf_code import AUTO_MAPS, write_code
from utils.errors import UserError

pytestmark = pytest.mark.slow
DEMO = Path(__file__).parents[3] / "checkpoints" / "ofa_demo.pt"
# Arguments: folder, where logits go, images.
PROGRAM = """
import json, sys
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoProcessor, AutoTokenizer

folder, file, *images = sys.argv[1:]
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "ofa"
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
batch = processor(text=[" what does the image describe?"] * len(images), images=[Image.open(x) for x in images])
with torch.no_grad():
    torch.save(model(**batch, decoder_input_ids=torch.tensor([[0, 5, 6]] * len(images))).logits, file)
search = dict(num_beams=5, no_repeat_ngram_size=3, max_new_tokens=17, early_stopping=True, min_new_tokens=1)
print(json.dumps([text.strip() for text in tokenizer.batch_decode(model.generate(**batch, **search), True)]))
assert not {"models", "utils", "data"} & {name.split(".")[0] for name in sys.modules}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("code") / "OFA-demo"
    assert main([str(DEMO), str(target), "--with-code"]) == 0
    return target


def test_a_folder_answers_without_the_repository(folder, tmp_path):
    images = []
    for row in range(3):
        images.append(tmp_path / f"{row}.png")
        render(TASKS["caption"].row(2, row, seed=1, size=96)[-1]).save(images[-1])
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, folder, tmp_path / "logits.pt", *images],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    predictor = OFAPredictor.load(DEMO, "cpu")
    expected = [caption.text for caption in predictor.caption(images)]
    assert json.loads(done.stdout) == expected and len(set(expected)) == 3
    pixels = torch.stack([standard_transform(48)(predictor.read_image(image)) for image in images])
    source = torch.tensor([[0, *predictor.vocab.encode(" what does the image describe?"), 2]] * 3)
    logits = predictor.model(source, torch.tensor([[0, 5, 6]] * 3), pixels)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits, rtol=0, atol=1e-4)


def test_files_import_each_other_and_libraries_only(folder):
    files = {path.stem for path in folder.glob("*.py")}
    for file in files:
        for node in ast.walk(ast.parse((folder / f"{file}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in files
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not {str(name).split(".")[0] for name in names} & {"models", "utils", "data", "fairseq"}


def test_every_named_class_is_there(folder):
    for file, classes in AUTO_MAPS.items():
        assert json.loads((folder / file).read_text())["auto_map"] == classes
        for named in classes.values():
            module, name = (named[1] if isinstance(named, list) else named).split(".")
            tree = ast.parse((folder / f"{module}.py").read_text())
            assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_code_is_added_to_a_folder_that_was_one_before(folder, tmp_path):
    convert(folder, tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    convert(folder, tmp_path / "again", with_code=True)
    assert {path.name for path in (tmp_path / "again").iterdir()} == {path.name for path in folder.iterdir()}
    (tmp_path / "bare").mkdir()
    write_code(tmp_path / "bare")
    assert {path.suffix for path in (tmp_path / "bare").iterdir()} == {".py"}


@pytest.mark.parametrize("name", ["new.pt", "new.safetensors"])
def test_files_have_no_code(name, tmp_path):
    with pytest.raises(UserError, match="--with-code is for folders"):
        convert(DEMO, tmp_path / name, with_code=True)
