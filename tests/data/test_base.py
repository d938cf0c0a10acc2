"""The base dataset: encoding, bad rows, random numbers, options."""

import base64
import dataclasses
import io
import random
import typing
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.base import DataConfig, OFADataset
from data.caption import CaptionDataset
from data.images import Decoded, decode_base64
from data.sample import Example, Sample, SkippedRow
from data.text import Vocabulary
from data.tsv import TsvFile
from utils.errors import BadRowError, UserError, one_sentence

ROOT = Path(__file__).parents[2]


def png(width: int = 3, height: int = 2) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (255, 0, 0)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


BAD_ROWS = {
    "columns": "5\ta cap",
    "base64": "5\tcap\t@@@not base64@@@",
    "padding": f"5\tcap\t{png()[:-3]}",
    "empty": "5\tcap\t",
    "not an image": "5\tcap\t" + base64.b64encode(b"hello, this is text").decode(),
    "zero size": "5\tcap\t" + base64.b64encode(b"P6\n0 4\n255\n").decode(),
}


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.load(ROOT / "utils" / "BPE")


class Lottery(OFADataset):
    """Text-only rows of id and text; the target is a random number."""

    columns = ("id", "text")

    def example(self, row: tuple[str, ...], rng: random.Random) -> Example:
        if row[1] == "broken":
            raise UserError("The whole run is broken.")
        return Example(row[0], row[1], f" {rng.random()}")


def captions(folder: Path, vocab: Vocabulary, lines: list[str], **options: typing.Any) -> CaptionDataset:
    path = folder / "rows.tsv"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    config = DataConfig(patch_image_size=4, **options)
    return CaptionDataset(TsvFile(str(path), "0,2,1"), vocab, config, "train")


def lottery(folder: Path, vocab: Vocabulary, texts: list[str], **numbers: int) -> Lottery:
    path = folder / "text.tsv"
    path.write_text("".join(f"{number}\t{text}\n" for number, text in enumerate(texts)), encoding="utf-8")
    return Lottery(TsvFile(str(path), "0,1"), vocab, DataConfig(), "train", **numbers)


def good(dataset: OFADataset, index: int) -> Sample:
    item = dataset[index]
    assert not isinstance(item, SkippedRow)
    return item


def targets(dataset: Lottery, order: typing.Iterable[int]) -> list[list[int]]:
    return [good(dataset, index)["target"].tolist() for index in order]


def test_text_sample_has_bos_eos_and_no_image(tmp_path: Path, vocab: Vocabulary) -> None:
    sample = good(lottery(tmp_path, vocab, ["what is it?"]), 0)
    assert sample["source"].tolist() == [0, *vocab.encode("what is it?"), 2]
    assert vocab.encode("what is it?") != vocab.encode(" what is it?")  # nothing is put in front
    assert set(sample) == {"row", "id", "source", "target", "prev_output_tokens", "extras"}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row_names_file_line_and_reason(tmp_path: Path, vocab: Vocabulary, name: str) -> None:
    dataset = captions(tmp_path, vocab, [f"4\ta cap\t{png()}", BAD_ROWS[name], f"6\ta hat\t{png()}"])
    with pytest.raises(BadRowError) as caught:
        dataset[1]
    assert caught.value.place == "line 2" and caught.value.path.endswith("rows.tsv") and caught.value.reason
    assert "rows.tsv, line 2: " in str(caught.value) and "--skip-bad-rows" in str(caught.value)
    assert [good(dataset, index)["id"] for index in (0, 2)] == ["4", "6"]
    assert good(dataset, 2)["row"] == 2


def test_image_without_pixels_is_a_bad_row(tmp_path: Path, vocab: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow's own decoders refuse such files already; a format that does not must still not pass
    monkeypatch.setattr("data.base.decode", lambda *_, **__: Decoded(Image.new("RGB", (0, 3)), False, False, "RGB"))
    with pytest.raises(BadRowError, match="line 1: the image is 0 x 3 pixels"):
        captions(tmp_path, vocab, [f"4\ta cap\t{png()}"])[0]


def test_skipped_rows_are_counted_by_the_batch(tmp_path: Path, vocab: Vocabulary) -> None:
    lines = [f"4\ta cap\t{png()}", *BAD_ROWS.values(), f"6\ta hat\t{png()}"]
    dataset = captions(tmp_path, vocab, lines, skip_bad_rows=True)
    items = [dataset[index] for index in range(len(dataset))]
    assert [isinstance(item, SkippedRow) for item in items] == [False, *[True] * len(BAD_ROWS), False]
    batch = dataset.collater(items)
    assert batch["id"].tolist() == ["4", "6"] and batch["nsentences"] == 2
    for line, message in enumerate(batch["skipped"], start=2):
        assert f"line {line}: " in message
    assert "skipped" not in dataset.collater([items[0]])


def test_skipped_rows_come_through_worker_processes(tmp_path: Path, vocab: Vocabulary) -> None:
    dataset = captions(tmp_path, vocab, [f"4\ta cap\t{png()}", BAD_ROWS["base64"]], skip_bad_rows=True)
    batches = list(DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=dataset.collater))
    assert len(batches) == 1 and len(batches[0]["skipped"]) == 1
    assert torch.equal(batches[0]["net_input"]["patch_images"][0], good(dataset, 0)["patch_image"])


def test_bad_row_stops_a_worker_with_its_message(tmp_path: Path, vocab: Vocabulary) -> None:
    dataset = captions(tmp_path, vocab, [BAD_ROWS["base64"]])
    with pytest.raises(BadRowError, match="line 1: the image is not valid base64") as caught:
        list(DataLoader(dataset, batch_size=1, num_workers=1, collate_fn=dataset.collater))
    assert one_sentence(caught.value).endswith("correct the row or pass --skip-bad-rows.")
    assert "Traceback" not in one_sentence(caught.value)


def test_errors_of_the_whole_run_are_not_skipped(tmp_path: Path, vocab: Vocabulary) -> None:
    dataset = lottery(tmp_path, vocab, ["broken"])
    dataset.config.skip_bad_rows = True
    with pytest.raises(UserError, match="whole run"):
        dataset[0]


def test_wrong_number_of_selected_columns_is_an_error_at_once(tmp_path: Path, vocab: Vocabulary) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text(f"4\ta cap\t{png()}\n", encoding="utf-8")
    for columns in ("0,2", "0,1,2,2"):
        with pytest.raises(UserError, match="--selected-cols gives . columns; choose those of id, image, caption"):
            CaptionDataset(TsvFile(str(path), columns), vocab, DataConfig(), "train")
    CaptionDataset(TsvFile(str(path)), vocab, DataConfig(), "train")


def test_random_numbers_depend_on_seed_epoch_and_row_only(tmp_path: Path, vocab: Vocabulary) -> None:
    texts = [f"row {number}" for number in range(6)]
    first = targets(lottery(tmp_path, vocab, texts), range(6))
    backward = targets(lottery(tmp_path, vocab, texts), reversed(range(6)))
    assert backward[::-1] == first
    assert len({tuple(target) for target in first}) == 6
    for numbers in ({"seed": 2}, {"epoch": 2}, {"seed": 2, "epoch": 2}):
        other = targets(lottery(tmp_path, vocab, texts, **numbers), range(6))
        assert all(one != two for one, two in zip(first, other, strict=True))


def test_images_are_taken_decoded_too(tmp_path: Path, vocab: Vocabulary) -> None:
    class Decoded(CaptionDataset):
        def example(self, row: tuple[str, ...], rng: random.Random) -> Example:
            example = super().example(row, rng)
            example.image = Image.open(io.BytesIO(decode_base64(row[1])))
            return example

    from_bytes = captions(tmp_path, vocab, [f"4\ta cap\t{png()}"])
    decoded = Decoded(from_bytes.rows, vocab, from_bytes.config, "train")
    assert torch.equal(good(decoded, 0)["patch_image"], good(from_bytes, 0)["patch_image"])


def test_every_option_has_help_and_a_type_that_makes_a_flag() -> None:
    defaults = {
        "data": None, "selected_cols": None, "columns": None, "image_root": None,
        "bpe": "gpt2", "bpe_dir": None, "max_source_positions": 1024,
        "max_target_positions": 1024, "max_src_length": 128, "max_tgt_length": 30, "code_dict_size": 8192,
        "patch_image_size": 480, "orig_patch_image_size": 256, "num_bins": 1000,
        "imagenet_default_mean_and_std": False, "constraint_range": None, "no_shuffle_rows": False,
        "exif_orientation": False, "max_image_pixels": 2**28, "fast_decode": False,
        "skip_bad_rows": False,
    }  # fmt: skip
    assert dataclasses.asdict(DataConfig()) == defaults
    for field in dataclasses.fields(DataConfig):
        assert field.metadata["help"]
        assert field.type in (int, bool, str, typing.Optional[str])  # noqa: UP045 (what fairseq unwraps)


@pytest.mark.parametrize("name", ["max_image_pixels", "max_src_length", "max_tgt_length"])
@pytest.mark.parametrize("value", [0, -1])
def test_limits_that_would_cut_texts_at_their_end_are_refused(name, value, tmp_path, vocab):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} {value}: choose at least 1"):
        captions(tmp_path, vocab, [f"5\tcap\t{png()}"], **{name: value})
