"""Rows of text-to-image generation: the golden samples and batches, smaller grids, bad rows."""

import base64
import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from data.image_gen import ImageGenData, ImageGenDataset
from data.text import Vocabulary
from data.tsv import TsvFile
from data.validate import BPE_DIR, main
from tests.conftest import GOLDEN, load_golden
from utils.errors import BadRowError, UserError

FIGURES = load_golden("samples_image_gen.json")
SECTIONS = [name for name, part in FIGURES.items() if "samples" in part]


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(BPE_DIR)


@pytest.fixture(params=SECTIONS)
def section(request, vocab, tmp_path):
    """Golden figures of a file and the dataset that has to give the same."""
    figures = FIGURES[request.param]
    shutil.copy(GOLDEN / "tsv" / figures["file"], tmp_path / "rows.tsv")
    options = dict(flag.removeprefix("--").replace("-", "_").split("=") for flag in figures["options"])
    config = ImageGenData(**{key: value if "cols" in key else int(value) for key, value in options.items()})
    rows = TsvFile(str(tmp_path / "rows.tsv"), config.selected_cols)
    return figures, ImageGenDataset(rows, vocab, config, figures["split"])


def test_golden_samples(section):
    figures, dataset = section
    assert len(dataset) == len(figures["samples"])
    for index, expected in enumerate(figures["samples"]):
        sample = dataset[index]
        assert sample["id"] == expected["id"]
        for key in ("source", "target", "prev_output_tokens"):
            assert sample[key].tolist() == expected[key], key
        assert sample["extras"]["code_masks"].item() is expected["code_mask"][0]
        image = sample["extras"].get("code_images")
        if expected["code_image"]["pixel_sum"]:
            assert list(image.size) == expected["code_image"]["size"]
            assert int(np.asarray(image, dtype=np.int64).sum()) == expected["code_image"]["pixel_sum"]
        else:
            assert image is None  # the original makes a black one, which means nothing


def test_golden_batches(section):
    figures, dataset = section
    expected, batch = figures["batch_of_all_rows"], dataset.collater([dataset[i] for i in range(len(dataset))])
    net_input = batch["net_input"]
    assert (batch["nsentences"], batch["ntokens"]) == (expected["nsentences"], expected["ntokens"])
    assert net_input["src_lengths"].tolist() == expected["src_lengths"]["values"]
    assert net_input["code_masks"].tolist() == [True] * expected["code_masks"]["true"]
    for key, tensor in {**net_input, "target": batch["target"]}.items():
        if key in ("src_tokens", "prev_output_tokens", "target"):
            assert list(tensor.shape) == expected[key]["shape"] and tensor.sum() == expected[key]["sum"]
            assert (tensor == dataset.vocab.pad).sum() == expected[key]["padding"]
            assert tensor[0, : len(expected[key]["row0"])].tolist() == expected[key]["row0"]
    assert "patch_images" not in net_input and "code_masks" not in batch
    assert ("code_images" in batch) == (len(dataset.columns) == 4)


def rows_of(path, vocab, *rows, **options):
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    columns = ",".join(map(str, range(len(rows[0]))))
    return ImageGenDataset(TsvFile(str(path), columns), vocab, ImageGenData(**options), "train")


def test_captions_are_the_words_that_the_model_reads(tmp_path, vocab):
    dataset = rows_of(tmp_path / "x.tsv", vocab, ["a", " A  dog/cat {x}\u00a0of red "], max_src_length=3)
    batch = dataset.collater([dataset[0]])
    assert batch["captions"] == ["A dog/cat {x}"]
    assert vocab.decode(batch["net_input"]["src_tokens"][0]) == " what is the complete image? caption: A dog/cat {x}"


@pytest.mark.parametrize(("side", "count"), [(256, 1024), (128, 256), (48, 36), (8, 1)])
def test_grids_of_any_side(side, count, tmp_path, vocab):
    codes = [(37 * number) % 8192 for number in range(count)]
    dataset = rows_of(tmp_path / "x.tsv", vocab, ["a", "a dog", " ".join(map(str, codes))], code_image_size=side)
    assert dataset[0]["target"].tolist() == [*(50265 + code for code in codes), 2]
    blank = rows_of(tmp_path / "y.tsv", vocab, ["a", "a dog"], code_image_size=side)
    assert blank[0]["target"].tolist() == [50265] * count + [2]
    empty = blank.collater([])
    assert empty == {}


BAD = [
    ("a dog", "0 1 2", "the row has 3 image codes, not 4"),
    ("a dog", "0 1 2 8192", "image code 8192 is outside 0..8191"),
    ("a dog", "0 1 2 -1", "image code -1 is outside"),
    ("a dog", "0 1 2 x", "are not numbers"),
    ("a dog", "", "0 image codes"),
    ("  ", "0 1 2 3", "no words"),
]


@pytest.mark.parametrize(("text", "codes", "words"), BAD)
def test_bad_rows_are_named(text, codes, words, tmp_path, vocab):
    dataset = rows_of(tmp_path / "x.tsv", vocab, ["1", "a", "0 0 8191 7"], ["2", text, codes], code_image_size=16)
    assert dataset[0]["target"].tolist() == [50265, 50265, 58456, 50272, 2]
    with pytest.raises(BadRowError, match="x.tsv, line 2: .*" + words):
        dataset[1]


def test_images_are_decoded_or_refused(tmp_path, vocab):
    file = io.BytesIO()
    Image.new("RGBA", (3, 2), (255, 0, 0, 255)).save(file, "PNG")
    good = base64.b64encode(file.getvalue()).decode()
    dataset = rows_of(tmp_path / "x.tsv", vocab, ["1", good, "a", "5"], ["2", "AAAA", "a", "5"], code_image_size=8)
    batch = dataset.collater([dataset[0]])
    assert [(image.mode, image.size) for image in batch["code_images"]] == [("RGB", (3, 2))]
    with pytest.raises(BadRowError, match="line 2: the image cannot be decoded"):
        dataset[1]


def test_other_numbers_of_columns_are_refused(tmp_path, vocab):
    with pytest.raises(UserError, match="gives 5 columns; choose those of id, text, codes"):
        rows_of(tmp_path / "x.tsv", vocab, ["1", "2", "3", "4", "5"])


def test_files_are_checked(tmp_path, capsys):
    good, bad = " ".join(["8191"] * 1024), " ".join(["8192"] * 1024)
    path = tmp_path / "x.tsv"
    path.write_text(f"1\t{good}\ta dog\n2\t{bad}\ta cat\n3\t7\ta cat\n")
    assert main(["image_gen", str(path), "--workers=0"]) == 1
    output = capsys.readouterr().out
    assert "1 of 3 rows are good." in output and "line 2: image code 8192 is outside 0..8191" in output
    path.write_text(f"1\t{good}\ta dog\n")
    assert main(["image_gen", str(path), "--workers=0"]) == 0


def test_code_masks_are_boolean(vocab, tmp_path):
    dataset = rows_of(tmp_path / "x.tsv", vocab, ["1", "a", "7"], code_image_size=8)
    assert dataset.collater([dataset[0]])["net_input"]["code_masks"].dtype == torch.bool
