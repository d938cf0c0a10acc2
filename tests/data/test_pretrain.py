"""The pretraining mixture: the original's samples, bad rows, shares and order of the files, both parts of a batch."""

import contextlib
import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data import image_text
from data.image_text import draw_match
from data.pretrain import Extra, PretrainDataset, plan_mixture
from data.pretrain_rows import OBJECTIVES, PretrainData, parse_objects
from data.prompts import prompt
from data.text import Vocabulary
from data.tsv import TsvFile
from tests.conftest import load_golden
from utils.errors import BadRowError, UserError

ROOT = Path(__file__).parents[2]
FIGURES = load_golden("samples_pretrain.json")
SAME_FOR_ALL = FIGURES["numpy_seed"]  # the original augments all images of an epoch alike
PAIRS = 17
TEXT, IMAGE, DETECTION = PAIRS, PAIRS + 6, PAIRS + 9  # first numbers of the further files' rows


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.load(ROOT / "utils" / "BPE")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "tests" / "golden" / "tsv" / "pretrain", tmp_path / "pretrain"))


@pytest.fixture
def config(folder: Path) -> PretrainData:
    return PretrainData(
        max_src_length=80,
        max_tgt_length=30,
        patch_image_size=384,
        selected_cols="0,1,2,3,4,5,6,7",
        text_data=str(folder / "text_examples.tsv"),
        text_selected_cols="0,1",
        image_data=str(folder / "image_examples.tsv"),
        image_selected_cols="0,1,2",
        detection_data=str(folder / "detection_examples.tsv"),
        detection_selected_cols="0,1,2",
        neg_sample_dir=str(folder / "negative_sample"),
    )


def build(folder: Path, vocab: Vocabulary, config: PretrainData, split: str = "train") -> PretrainDataset:
    rows = TsvFile(folder / "vision_language_examples.tsv", config.selected_cols)
    return PretrainDataset(rows, vocab, config, split)


@pytest.fixture
def dataset(folder: Path, vocab: Vocabulary, config: PretrainData) -> PretrainDataset:
    return build(folder, vocab, config)


def as_original(dataset: PretrainDataset, monkeypatch: pytest.MonkeyPatch, folder: Path) -> PretrainDataset:
    """Images augmented as if all rows had one seed; captions without blank lines, which the original drops first."""

    @contextlib.contextmanager
    def seeded_alike(rng: random.Random) -> Iterator[None]:
        state = np.random.get_state()
        np.random.seed(SAME_FOR_ALL)
        yield
        np.random.set_state(state)

    monkeypatch.setattr(image_text, "seeded", seeded_alike)
    if dataset.negatives is not None:
        path = folder / "no_blanks.txt"
        lines = (folder / "negative_sample" / "all_captions.txt").read_text().splitlines()
        path.write_text("".join(f"{line}\n" for line in lines if line.strip()))
        dataset.negatives.captions = TsvFile(path, (0,))
    return dataset


def assert_sample(sample: Any, expected: dict[str, Any]) -> None:
    assert sample["id"] == expected["id"]
    for key in ("source", "target", "prev_output_tokens"):
        assert sample[key].dtype == torch.int64 and sample[key].tolist() == expected[key], key
    assert sample["patch_mask"].tolist() == expected["patch_mask"]
    assert sample["extras"]["conf"].reshape(-1).tolist() == expected["conf"]
    assert ("code_masks" in sample["extras"]) == ("code_mask" in expected)
    if "code_mask" in expected:
        assert sample["extras"]["code_masks"].reshape(-1).tolist() == expected["code_mask"]
    image, figures = sample["patch_image"], expected["patch_image"]
    assert list(image.shape) == figures["shape"] and image.dtype == torch.float32
    assert image.double().mean(dim=(1, 2)).tolist() == pytest.approx(figures["channel_means"], abs=1e-5)
    assert image.double().std(correction=0).item() == pytest.approx(figures["std"], abs=1e-5)
    for channel, y, x, value in figures["probes_c_y_x_value"]:
        assert image[channel, y, x].item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_pairs_of_the_original(
    folder: Path, vocab: Vocabulary, config: PretrainData, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is drawn, too: texts, crops, matching and negatives."""
    dataset = as_original(build(folder, vocab, config, split), monkeypatch, folder)
    rows = FIGURES[split]["samples"]
    assert len(dataset) == len(rows) == PAIRS
    samples = []
    for index, expected in enumerate(rows):
        rng = random.Random(1000 + index)  # the original's state before this row
        sample: Any = dataset._encode(index, dataset.example(dataset.rows[index], rng))
        samples.append(sample)
        pair = [sample, sample["second"]] if "second" in sample else [sample]
        assert len(pair) == len(expected["pair_samples"])
        for one, figures in zip(pair, expected["pair_samples"], strict=True):
            assert_sample(one, figures)
        assert len(pair) == 1 or pair[0]["patch_image"] is pair[1]["patch_image"]
    if split == "valid":
        batch: Any = dataset.collater(samples)
        figures = FIGURES["valid"]["batch_of_all_rows"]
        assert batch["nsentences"] == figures["nsentences"] and batch["ntokens"] == figures["ntokens"]
        assert list(batch["net_input"]["src_tokens"].shape) == figures["src_tokens"]["shape"]
        assert batch["net_input"]["src_lengths"].tolist() == figures["src_lengths"]["values"]
        assert batch["conf"].tolist() == figures["conf"]["values"]


def test_texts_of_the_original(dataset: PretrainDataset) -> None:
    texts: Any = dataset.sources[0]
    for call, pair in enumerate(FIGURES["pure_text"]["samples"]):
        generator = torch.Generator().manual_seed(2000 + call)
        for row, expected in enumerate(pair, start=2 * call):
            assert_sample(texts._encode(row, texts.infilling(*texts.rows[row], generator)), expected)


def test_images_with_codes_of_the_original(dataset: PretrainDataset) -> None:
    for row, (expected,) in enumerate(FIGURES["pure_image"]["samples"]):
        sample: Any = dataset[IMAGE + row]
        assert_sample(sample, expected)
        pixels = sample["patch_image"]
        assert (pixels[:, 64:192, 64:192] == 0).all() and pixels[:, 63].any() and pixels[:, :, 192].any()


def test_detection_of_the_original(dataset: PretrainDataset) -> None:
    source: Any = dataset.sources[2]
    for row, (expected,) in enumerate(FIGURES["detection"]["samples"]):
        generator = torch.Generator().manual_seed(2000 + row)
        example = source.detection(source.rows[row], random.Random(2000 + row), generator)
        assert_sample(source._encode(row, example), expected)


def test_rows_repeat_and_change_with_epoch_and_seed(dataset: PretrainDataset) -> None:
    numbers = (0, 2, TEXT + 2, DETECTION)

    def content() -> list[Any]:
        found = []
        for number in numbers:
            sample: Any = dataset[number]
            found.append((sample["source"].tolist(), sample["target"].tolist(), sample["patch_image"].sum().item()))
        return found

    states: Any = random.getstate(), np.random.get_state(), torch.get_rng_state()
    before = content()
    assert before == content()
    dataset.set_epoch(2)
    second = content()
    dataset.set_epoch(1)
    dataset.seed = 5
    assert all(a != b != c for a, b, c in zip(before, second, content(), strict=True))
    assert states[0] == random.getstate() and torch.equal(states[2], torch.get_rng_state())
    after: Any = np.random.get_state()
    assert (states[1][1] == after[1]).all()


def test_pretrain_seed_changes_images_alone(folder: Path, vocab: Vocabulary, config: PretrainData) -> None:
    one, other = build(folder, vocab, config), build(folder, vocab, replace(config, pretrain_seed=8))
    samples: Any = [(one[row], other[row]) for row in (0, 1, 3, 4)]
    assert all(torch.equal(a["second"]["source"], b["second"]["source"]) for a, b in samples)
    assert not all(torch.equal(a["patch_image"], b["patch_image"]) for a, b in samples)


def test_half_of_the_matches_are_right() -> None:
    rng = random.Random(0)
    drawn = [draw_match("right", "wrong", rng) for _ in range(20_000)]
    assert set(drawn) == {("right", " yes"), ("wrong", " no")}
    assert abs(drawn.count(("right", " yes")) - 10_000) <= 3 * math.sqrt(5_000)


def test_long_text_keeps_its_last_ids(dataset: PretrainDataset) -> None:
    texts: Any = dataset.sources[0]
    for count, first in ((100, 0), (300, 44), (512, 256), (900, 256)):
        example = texts.infilling("x", " ".join("abcdefghij"[i % 10] for i in range(count)), torch.Generator())
        ids = texts.vocab.encode("".join(" " + "abcdefghij"[i % 10] for i in range(count)))
        assert len(ids) == count and example.target == ids[first : first + 256]


def test_short_web_caption_still_ends(dataset: PretrainDataset) -> None:
    row = list(dataset.rows[0])
    row[2], row[5] = "dog", ""
    sample: Any = dataset._encode(0, dataset.example(tuple(row), random.Random(0)))
    assert sample["target"].tolist() == [dataset.vocab.pad, dataset.vocab.eos]
    assert sample["prev_output_tokens"].tolist() == [0, *dataset.vocab.encode(" dog")]


def test_objects_with_commas() -> None:
    boxes, names = parse_objects("1,2,3,4,/m/1,box, wooden&&0,0,9,9,x,b", 10, 10)
    assert boxes.tolist() == [[1, 2, 3, 4], [0, 0, 9, 9]] and names == ["box, wooden", "b"]


def test_ends_of_columns_are_stripped(folder: Path, vocab: Vocabulary, config: PretrainData) -> None:
    boxes, names = parse_objects(" 1,2,3,4,/m/1,box \u3000&& 0,0,9,9,x, big b\t", 10, 10)
    assert boxes.tolist() == [[1, 2, 3, 4], [0, 0, 9, 9]] and names == ["box", " big b"]
    for column, text in ((7, "caption"), (2, "a cap"), (5, "  cap&&dog \u3000")):
        rewritten(folder / "vision_language_examples.tsv", column, text)
    dataset = build(folder, vocab, config)
    assert dataset.negatives is not None
    named: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset.negatives, "caption", lambda *args: named.extend(args[1]) or "a hat")
        dataset[1]
    assert named == ["cap", "dog"]


def rewritten(path: Path, column: int, text: str) -> None:
    """Changes a column of the second row."""
    lines = path.read_text().split("\n")
    fields = lines[1].split("\t")
    fields[column] = text
    lines[1] = "\t".join(fields)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    "name, column, text, number, reason",
    [
        ("vision_language", 7, "vqa", 1, "the type is 'vqa', not one of caption, qa, visual_grounding"),
        ("vision_language", 3, "?*", 1, "the question has no words"),
        ("vision_language", 4, "1.0|!+ ", 1, "the answer has no words"),
        ("vision_language", 4, "yes", 1, "the answer column needs"),
        ("vision_language", 7, "caption", 1, "the caption has no words"),
        ("vision_language", 7, "visual_grounding", 1, "is not x0,y0,x1,y1"),
        ("vision_language", 1, "AAAA", 1, "not a format that Pillow reads"),
        ("text", 1, "  ", TEXT + 1, "the text has no words"),
        ("image", 2, " ".join(["8192"] * 256), IMAGE + 1, "image code 8192 is outside 0..8191"),
        ("image", 2, "-1 " * 256, IMAGE + 1, "image code -1 is outside 0..8191"),
        ("image", 2, "7 8", IMAGE + 1, "the row has 2 image codes, not 256"),
        ("image", 2, "a b", IMAGE + 1, "the codes 'a b' are not numbers"),
        ("detection", 2, "", DETECTION + 1, "the row has no objects"),
        ("detection", 2, "1,2,3,4,5", DETECTION + 1, "is not x0,y0,x1,y1,category_id,name"),
        ("detection", 2, "1,2,3,4,/m/1, ", DETECTION + 1, "is not x0,y0,x1,y1,category_id,name"),
        ("detection", 2, "1,2,1,4,/m/1,cup", DETECTION + 1, "has no area"),
        ("detection", 2, "1,2,9000,4,/m/1,cup", DETECTION + 1, "is outside the image"),
    ],
)
def test_bad_rows(
    folder: Path, vocab: Vocabulary, config: PretrainData, name: str, column: int, text: str, number: int, reason: str
) -> None:
    path = folder / f"{name}_examples.tsv"
    rewritten(path, column, text)
    dataset = build(folder, vocab, config)
    with pytest.raises(BadRowError, match=reason) as error:
        dataset[number]
    assert f"{path}, line 2: " in str(error.value)
    config.skip_bad_rows = True
    first, second = dataset.collate_parts([dataset[number], dataset[2], dataset[TEXT]])
    assert len(first["skipped"]) == 1 and reason.split(",")[0] in first["skipped"][0]
    assert first["nsentences"] == 2 and second["nsentences"] == 1


def test_image_of_another_size(folder: Path, vocab: Vocabulary, config: PretrainData) -> None:
    rewritten(folder / "image_examples.tsv", 1, TsvFile(folder / "detection_examples.tsv", (1,))[0][0])
    with pytest.raises(BadRowError, match="pixels, not 256 x 256"):
        build(folder, vocab, config)[IMAGE + 1]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"neg_sample_dir": None}, "--neg-sample-dir is missing"),
        ({"neg_sample_dir": "/nowhere"}, "There is no file /nowhere/all_captions.txt"),
        ({"text_data": "/nowhere.tsv"}, "There is no data file /nowhere.tsv"),
        ({"image_selected_cols": "0,1"}, "gives 2 columns; choose those of id, image, codes"),
        ({"mask_length": "spans"}, "Unknown --mask-length"),
        ({"detection_ratio": -1.0}, "--detection-ratio is -1.0"),
        ({"selected_cols": "0,1"}, "gives 2 columns"),
    ],
)
def test_wrong_options(
    folder: Path, vocab: Vocabulary, config: PretrainData, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        build(folder, vocab, replace(config, **change))


def test_validation_needs_the_main_file_only(folder: Path, vocab: Vocabulary, config: PretrainData) -> None:
    dataset = build(folder, vocab, replace(config, neg_sample_dir=None, text_data="/nowhere.tsv"), "valid")
    assert not dataset.sources and len(dataset) == PAIRS


EXTRAS = [Extra(10, 0.25), Extra(7, 0.125), Extra(5, 0.125)]


def parts(plan: list[np.ndarray], num_rows: int, extras: list[Extra]) -> list[list[list[int]]]:
    """Per file, the rows of each step."""
    bounds = np.cumsum([0, num_rows, *(extra.num_rows for extra in extras)])
    pairs = list(zip(bounds[:-1], bounds[1:], strict=True))
    return [[[int(n - low) for n in step if low <= n < high] for step in plan] for low, high in pairs]


@pytest.mark.parametrize("batch_size, steps", [(8, [2, 1, 1]), (16, [4, 2, 2])])
def test_released_shares(batch_size: int, steps: list[int]) -> None:
    rows, *further = parts(plan_mixture(160, EXTRAS, batch_size, 0, 1, 1, 1, True), 160, EXTRAS)
    assert sorted(sum(rows, [])) == list(range(160)) and {len(step) for step in rows} == {batch_size}
    assert [{len(step) for step in file} for file in further] == [{count} for count in steps]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5])
def test_shares_hold_for_every_batch_size(batch_size: int) -> None:
    _, *further = parts(plan_mixture(240, EXTRAS, batch_size, 0, 1, 1, 1, True), 240, EXTRAS)
    assert [sum(map(len, file)) for file in further] == [60, 30, 30]
    for file, share in zip(further, (0.25, 0.125, 0.125), strict=True):
        assert {len(step) for step in file} <= {math.floor(batch_size * share), math.ceil(batch_size * share)}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_passes_go_on_over_ranks_and_epochs(world_size: int, shuffle: bool) -> None:
    """Each pass over a further file has each row once, though passes end in the middle of epochs."""
    extras = [Extra(11, 0.25), Extra(7, 1.5)]
    streams: list[list[int]] = [[], []]
    for epoch in (1, 2, 3):
        plans = [plan_mixture(44, extras, 4, rank, world_size, 1, epoch, shuffle) for rank in range(world_size)]
        per_rank = [parts(plan, 44, extras)[1:] for plan in plans]
        for file, stream in enumerate(streams):
            for step in range(len(plans[0])):
                assert len({len(plan[file][step]) for plan in per_rank}) == 1  # as many on all ranks
                for plan in per_rank:
                    stream += plan[file][step]
    for extra, stream in zip(extras, streams, strict=True):
        passes = [stream[i : i + extra.num_rows] for i in range(0, len(stream), extra.num_rows)]
        whole = [one for one in passes if len(one) == extra.num_rows]
        assert len(whole) >= 2 and all(sorted(one) == list(range(extra.num_rows)) for one in whole)
        assert (whole[0] == whole[1] == list(range(extra.num_rows))) == (not shuffle)


def test_rank_without_rows_left_gets_an_empty_step() -> None:
    plan = plan_mixture(5, EXTRAS, 2, 1, 2, 1, 1, True)
    assert [len(step) > 0 for step in plan] == [True, False]


def test_ratio_of_nothing(folder: Path, vocab: Vocabulary, config: PretrainData) -> None:
    dataset: Any = build(folder, vocab, replace(config, image_data=None, detection_ratio=0.0))
    plan = dataset.plan(8, 0, 1, 1, True)
    assert all(max(step) < TEXT + 6 for step in plan)
    assert [sum(step >= TEXT) for step in plan] == [2, 2, 2]
    assert dataset[TEXT + 6]["id"] == "d0"
    with pytest.raises(IndexError):
        dataset[TEXT + 6 + 4]


def test_texts_with_codes_are_drawn(folder: Path, vocab: Vocabulary, config: PretrainData) -> None:
    """Prompt and target are those of text-to-image generation; an image is there for the shape only."""
    codes, text = " ".join(map(str, range(256))), " ".join(f"word{number}" for number in range(100))
    (folder / "drawn.tsv").write_text(f"g0\t{text}\t{codes}\n")
    drawn = replace(config, image_gen_data=str(folder / "drawn.tsv"), text_data=None, image_gen_ratio=1.0)
    dataset: Any = build(folder, vocab, drawn)
    sample = dataset[PAIRS + 3 + 4]  # behind images and detection
    wanted = prompt("image_gen", vocab.bpe).format(caption=" ".join(text.split()[:80]))
    assert sample["id"] == "g0" and sample["source"][1:-1].tolist() == vocab.encode(wanted)
    assert sample["target"].tolist() == [*map(vocab.code_id, range(256)), vocab.eos]
    (second,) = dataset.collate_parts([sample])[1:]
    assert second["net_input"]["code_masks"].tolist() == [True] and not second["net_input"]["patch_masks"].any()


def test_matching_may_weigh_more(folder: Path, vocab: Vocabulary, config: PretrainData) -> None:
    dataset: Any = build(folder, vocab, replace(config, matching_weight=5.0))
    plain: Any = build(folder, vocab, config)
    for row in range(PAIRS):
        given, was = dataset[row], plain[row]
        matching = OBJECTIVES[was["second"]["extras"]["objective"]] == "matching"
        assert given["extras"]["conf"] == was["extras"]["conf"]
        assert given["second"]["extras"]["conf"] == was["second"]["extras"]["conf"] * (5 if matching else 1)
        assert torch.equal(given["second"]["target"], was["second"]["target"])


def test_two_parts(dataset: PretrainDataset) -> None:
    plan = dataset.plan(8, 0, 1, 1, True)
    assert [len(step) for step in plan] == [12, 12, 5]
    both: Any = dataset.collate_parts([dataset[n] for n in plan[0]])
    first, second = both
    net_1, net_2 = first["net_input"], second["net_input"]
    assert first["nsentences"] == 16 and second["nsentences"] == 4
    assert net_1["patch_images"].shape == (16, 3, 384, 384) and net_2["patch_images"].shape == (4, 3, 256, 256)
    assert "code_masks" not in net_1 and net_2["code_masks"].tolist() == [False, False, True, False]
    assert net_2["patch_masks"].tolist() == [False, False, True, True] and net_1["patch_masks"].all()
    assert second["conf"].tolist() == [2.0] * 4 and "code_masks" not in second
    assert second["id"].tolist()[2].startswith("i")
    assert first["id"].tolist()[::2] == first["id"].tolist()[1::2]
    assert first["ntokens"] == (first["target"] != 1).sum()


def test_parts_may_be_empty(dataset: PretrainDataset) -> None:
    first, second = dataset.collate_parts([dataset[0]])
    assert first["nsentences"] == 2 and second == {}
    first, second = dataset.collate_parts([dataset[TEXT]])
    assert first == {} and second["nsentences"] == 1
    assert dataset.collate_parts([]) == []


def test_resuming_is_a_number_with_any_number_of_workers(dataset: PretrainDataset) -> None:
    def batches(start: int, workers: int) -> list[Any]:
        steps = dataset.plan(8, 0, 1, 3, True)[start:]
        loader = DataLoader(dataset, batch_sampler=steps, collate_fn=dataset.collate_parts, num_workers=workers)  # type: ignore[arg-type]
        return list(loader)

    whole, rest = batches(0, 0), batches(1, 2)
    assert len(rest) == len(whole) - 1 == 2
    for before, after in zip(whole[1:], rest, strict=True):
        for part, again in zip(before, after, strict=True):
            assert part["id"].tolist() == again["id"].tolist() and torch.equal(part["target"], again["target"])
            for key, tensor in part["net_input"].items():
                assert torch.equal(tensor, again["net_input"][key]), key
