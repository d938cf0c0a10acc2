"""Rows with images that lie on their side, are cut off, or too large: training reads on, the checker tells."""

import base64
from pathlib import Path
from typing import Any

import pytest
import torch

from data.collate import damaged_images
from data.sample import DAMAGED
from data.text import Vocabulary
from data.tsv import TsvFile
from data.validate import BPE_DIR, ROW_KINDS, main
from utils.errors import BadRowError

CASES = Path(__file__).parents[1] / "cases"
# task -> a row, %s is the image; of all tasks whose rows have one
ROWS = {
    "caption": "1\t%s\ta cat",
    "vqa_gen": "1\t%s\twhat?\t1.0|!+yes\tcat",
    "refcoco": "1\t%s\ta cat\t0,0,40,40",
    "snli_ve": "1\t%s\ta cat\tan animal\tneutral",
    "image_classify": "%s\tyes",
    "image_gen": "1\t%s\ta cat\t" + " ".join(["5"] * 1024),
    "pretrain": "1\t%s\ta cat\t\t\t\tcoco\tcaption",
    "pretrain_detection": "1\t%s\t0,0,40,40,1,cat",
}


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.load(BPE_DIR)


def write(path: Path, task: str, *names: str) -> str:
    """A file of the task with a row for each image of the cases."""
    images = (base64.b64encode((CASES / name).read_bytes()).decode() for name in names)
    path.write_text("".join(f"{ROWS[task] % image}\n" for image in images))
    return str(path)


def columns(task: str) -> str:
    return ",".join(str(number) for number in range(ROWS[task].count("\t") + 1))


def dataset(path: str, task: str, vocab: Vocabulary, **options: Any) -> Any:
    kind = ROW_KINDS[task]
    size = {"code_image_size": 256} if task == "image_gen" else {}
    config = kind.config(patch_image_size=32, **size, **options)
    return kind.dataset(TsvFile(path, columns(task)), vocab, config, "check")


@pytest.mark.parametrize("task", ROWS)
def test_images_lie_as_released_unless_asked(task: str, vocab: Vocabulary, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.tsv", task, "exif6.jpg")
    sizes = []
    for turn in (False, True):
        rows = dataset(path, task, vocab, exif_orientation=turn)
        seen: list[tuple[int, int]] = []
        rows._decode = lambda data, side=None, decode=rows._decode, seen=seen: (
            seen.append((i := decode(data)).size),
            i,
        )[1]
        assert ("image_notes" in rows[0]) == (not turn)
        sizes += seen[:1]
    assert sizes == [(96, 48), (48, 96)]


@pytest.mark.parametrize("task", ROWS)
def test_cut_off_images_are_read_and_counted(task: str, vocab: Vocabulary, tmp_path: Path) -> None:
    rows = dataset(write(tmp_path / "rows.tsv", task, "trunc_half.jpg", "gray16.png"), task, vocab)
    batch = rows.collater([rows[0], rows[1]])
    assert damaged_images(batch) == [f"{tmp_path}/rows.tsv, line 1: {DAMAGED}"] == damaged_images([batch, {}])
    assert not damaged_images(rows.collater([rows[1]])) and batch["nsentences"] == 2


@pytest.mark.parametrize("task", ROWS)
def test_bombs_are_bad_rows(task: str, vocab: Vocabulary, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.tsv", task, "bomb.png", "exif6.jpg")
    with pytest.raises(BadRowError, match="line 1: .*400000000 pixels, more than the 268435456"):
        dataset(path, task, vocab)[0]
    with pytest.raises(BadRowError, match="line 2: .*96 x 48 = 4608 pixels, more than the 4000"):
        dataset(path, task, vocab, max_image_pixels=4000)[1]


def test_the_checker_reports_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = "exif6.jpg", "trunc_half.jpg", "bomb.png", "gray16.png", "exif6.jpg"
    path = write(tmp_path / "rows.tsv", "caption", *names)
    argv = ["caption", path, "--selected-cols=0,1,2", "--workers=0"]
    assert main(argv) == 1
    output = capsys.readouterr().out
    assert "3 of 5 rows are good." in output and f"1 x {DAMAGED}" in output
    assert "2 good rows have an image that --exif-orientation would turn upright." in output
    assert main([*argv, "--exif-orientation", "--max-image-pixels=40000"]) == 1
    output = capsys.readouterr().out
    assert "--exif-orientation" not in output and "3 of 5 rows are good." in output
    assert main(["caption", write(tmp_path / "more.tsv", "caption", "exif6.jpg"), *argv[2:]]) == 0


def test_gray_of_sixteen_bits_has_its_levels_in_training(vocab: Vocabulary, tmp_path: Path) -> None:
    rows = dataset(write(tmp_path / "rows.tsv", "caption", "gray16.png"), "caption", vocab)
    pixels = rows[0]["patch_image"]
    assert pixels.min() < -0.9 and pixels.max() > 0.9 and len(torch.unique(pixels)) > 20


@pytest.mark.parametrize("task", ["caption", "vqa_gen", "snli_ve", "image_classify"])
def test_rows_of_an_evaluation_share_an_image(task: str, vocab: Vocabulary, tmp_path: Path) -> None:
    names = ("trunc_half.jpg", "trunc_half.jpg", "gray16.png", "trunc_half.jpg")
    path = write(tmp_path / "rows.tsv", task, *names)
    kind = ROW_KINDS[task]
    for split, shared in (("valid", True), ("train", False)):
        rows = kind.dataset(TsvFile(path, columns(task)), vocab, kind.config(patch_image_size=32), split)
        samples = [rows[number] for number in range(4)]
        assert (samples[0]["patch_image"] is samples[1]["patch_image"]) == shared
        assert ["image_notes" in sample for sample in samples] == [True, True, False, True]
        net_input = rows.collater(samples)["net_input"]
        assert len(net_input["patch_images"]) == (3 if shared else 4) and ("image_rows" in net_input) == shared
        if shared:
            assert net_input["image_rows"].tolist() == [0, 0, 1, 2]
            pixels = net_input["patch_images"]
    train = kind.dataset(TsvFile(path, columns(task)), vocab, kind.config(patch_image_size=32), "check")
    if task != "image_classify":  # which augments rows to learn from
        torch.testing.assert_close(train[1]["patch_image"], pixels[0])
