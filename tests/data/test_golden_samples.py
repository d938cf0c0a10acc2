"""Every row of the golden files becomes the sample, and all rows the batch, that the original made of them."""

import dataclasses
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from data.answers import read_answers
from data.base import DataConfig, OFADataset
from data.caption import CaptionDataset
from data.gigaword import GigawordData, GigawordDataset, add_noise
from data.glue import GLUE, GlueData, GlueDataset
from data.image_classify import ImageClassifyData, ImageClassifyDataset
from data.refcoco import RefcocoData, RefcocoDataset
from data.snli_ve import SnliVeData, SnliVeDataset
from data.text import Vocabulary
from data.tsv import TsvFile
from data.vqa_gen import VqaGenData, VqaGenDataset
from models.generation import CandidateTrie
from tasks.answers import prefix_tokens
from tests.conftest import load_golden

ROOT = Path(__file__).parents[2]
TSV = ROOT / "tests" / "golden" / "tsv"
CONFIGS: dict[str, type[DataConfig]] = {
    "caption": DataConfig,
    "vqa_gen": VqaGenData,
    "refcoco": RefcocoData,
    "snli_ve": SnliVeData,
    "image_classify": ImageClassifyData,
    "gigaword": GigawordData,
    **dict.fromkeys(GLUE, GlueData),
}
ANSWER_FILES = {"vqa_gen": "vqa_gen/trainval_ans2label.pkl", "image_classify": "image_classify/class2label.pkl"}
# extras that a sample has under the name the original gave its batch
RENAMED = {"w_resize_ratio": "w_resize_ratios", "h_resize_ratio": "h_resize_ratios", "region_coord": "region_coords"}


class Section(NamedTuple):
    """A part of a golden file and the dataset that has to give the same."""

    task: str
    figures: dict[str, Any]
    dataset: OFADataset


def sections() -> list[tuple[str, str]]:
    files = {task: load_golden(f"samples_{task}.json") for task in CONFIGS}
    return [(task, name) for task, file in files.items() for name, part in file.items() if "samples" in part]


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.load(ROOT / "utils" / "BPE")


@pytest.fixture(scope="module", params=sections(), ids=lambda pair: "-".join(pair))
def section(request: pytest.FixtureRequest, vocab: Vocabulary, tmp_path_factory: Any) -> Section:
    task, name = request.param
    figures = load_golden(f"samples_{task}.json")[name]
    path = tmp_path_factory.mktemp("golden") / "rows.tsv"  # its index is written beside it
    shutil.copy(TSV / figures["file"], path)
    config = CONFIGS[task]()
    kinds = {f.name: f.type for f in dataclasses.fields(config)}
    options = dict(option.removeprefix("--").partition("=")[::2] for option in figures["options"])
    for flag, value in options.items():
        field = flag.replace("-", "_")
        if field in ("scst", "scst_args"):
            continue
        default = getattr(config, field)
        kinds = {f.name: f.type for f in dataclasses.fields(config)}
        setattr(
            config, field, True if default is False else kinds[field](value) if kinds[field] in (int, float) else value
        )
    return Section(task, figures, build(task, path, vocab, config, figures["split"], "scst" in options))


def build(task: str, path: Path, vocab: Vocabulary, config: Any, split: str, scst: bool) -> OFADataset:
    """The dataset as the plugin's task makes it."""
    rows = TsvFile(str(path), config.selected_cols)
    if task == "caption":
        return CaptionDataset(rows, vocab, config, split, scst=scst)
    if task == "refcoco":
        return RefcocoDataset(rows, vocab, config, split)
    if task == "gigaword":
        return GigawordDataset(rows, vocab, config, split)
    dataset: OFADataset
    if task in GLUE:
        answers = GLUE[task].answers
        dataset = GlueDataset(task, rows, vocab, config, split)
    else:
        config.ans2label_file = str(TSV / ANSWER_FILES[task]) if task in ANSWER_FILES else None
        answers = read_answers(config)
        if task == "snli_ve":
            dataset = SnliVeDataset(rows, vocab, config, split)
        elif task == "image_classify":
            dataset = ImageClassifyDataset(rows, vocab, config, split, answers=answers)
        elif config.unconstrained_training:
            return VqaGenDataset(rows, vocab, config, split)
        else:
            dataset = VqaGenDataset(rows, vocab, config, split, answers=answers)
    dataset.allowed_after = CandidateTrie.from_texts(answers, vocab.encode).children
    return dataset


def allowed_ids(sample: dict[str, Any]) -> list[list[int]]:
    """The ids allowed at each target position."""
    return [sample["constraint_ids"][sample["constraint_rows"] == t].tolist() for t in range(len(sample["target"]))]


def noisy(section: Section) -> bool:
    return "--noise-ratio=0.2" in section.figures["options"]


def test_samples(section: Section) -> None:
    assert len(section.dataset) == len(section.figures["samples"])
    for index, expected in enumerate(section.figures["samples"]):
        sample: Any = section.dataset[index]
        assert isinstance(sample, dict)
        if "id" in expected:
            assert sample["id"] == str(expected["id"])
        for key in ("source", "target", "prev_output_tokens"):
            if key == "prev_output_tokens" and noisy(section):
                continue
            assert sample[key].dtype == torch.int64 and sample[key].tolist() == expected[key], key
        for key in expected.keys() & {"decoder_prompt"}:
            assert sample[key] == expected[key]
        for key in expected.keys() & {"ref_dict", "target_str"}:
            assert sample["extras"][key.replace("target_str", "target_strs")] == expected[key]
        for key in expected.keys() & {"conf", *RENAMED}:
            value = sample["extras"][RENAMED.get(key, key)]
            assert value.reshape(-1).tolist() == torch.tensor(expected[key]).reshape(-1).tolist(), key
        assert ("constraint_mask" in expected) == ("constraint_rows" in sample)
        if "constraint_mask" in expected:
            figures = expected["constraint_mask"]
            assert allowed_ids(sample) == figures["allowed"] and figures["shape"][0] == len(sample["target"])
        if "patch_image" in expected:
            assert sample["patch_mask"].tolist() == expected["patch_mask"]
            if section.task != "image_classify" or section.figures["split"] != "train":  # else random
                assert_image(sample["patch_image"], expected["patch_image"])


def assert_image(image: torch.Tensor, figures: dict[str, Any]) -> None:
    assert list(image.shape) == figures["shape"] and image.dtype == torch.float32
    assert image.double().mean().item() == pytest.approx(figures["mean"], abs=1e-5)
    assert image.double().std(correction=0).item() == pytest.approx(figures["std"], abs=1e-5)
    assert image.double().mean(dim=(1, 2)).tolist() == pytest.approx(figures["channel_means"], abs=1e-5)
    for channel, y, x, value in figures["probes_c_y_x_value"]:
        assert image[channel, y, x].item() == pytest.approx(value, abs=1e-5)


def test_batch(section: Section) -> None:
    expected, pad = section.figures["batch_of_all_rows"], section.dataset.vocab.pad
    batch: Any = section.dataset.collater([section.dataset[index] for index in range(len(section.dataset))])
    net_input = batch["net_input"]
    assert batch["nsentences"] == expected["nsentences"] and batch["ntokens"] == expected["ntokens"]
    assert net_input["src_lengths"].tolist() == expected["src_lengths"]["values"]
    tokens = {"src_tokens": net_input["src_tokens"], "target": batch["target"]}
    if not noisy(section):
        tokens["prev_output_tokens"] = net_input["prev_output_tokens"]
    if "prefix_tokens" in expected:
        tokens["prefix_tokens"] = prefix_tokens(batch["decoder_prompts"], pad)
    for key, tensor in tokens.items():
        assert list(tensor.shape) == expected[key]["shape"], key
        assert tensor.sum() == expected[key]["sum"] and (tensor == pad).sum() == expected[key]["padding"], key
        assert tensor[0].tolist()[: len(expected[key]["row0"])] == expected[key]["row0"], key
    for key in expected.keys() & {"patch_images", "patch_masks"}:
        assert list(net_input[key].shape) == expected[key]["shape"]
    for key in expected.keys() & {"conf", "w_resize_ratios", "h_resize_ratios", "region_coords"}:
        assert list(batch[key].shape) == expected[key]["shape"], key
    if "constraint_masks" in expected:
        # the original allows everything at padded positions, we store nothing there
        padded = sum(batch["target"].size(1) - len(s["target"]) for s in section.figures["samples"])
        everything = padded * len(section.dataset.vocab)
        assert batch["constraint_ids"].numel() + everything == expected["constraint_masks"]["true"]
        rows = batch["constraint_rows"]
        assert batch["target"].flatten()[rows].ne(pad).all()


def test_noise_of_summaries(vocab: Vocabulary) -> None:
    figures = load_golden("samples_gigaword.json")["train_noise"]
    for index, sample in enumerate(figures["samples"]):
        generator = torch.Generator().manual_seed(1000 + index)
        assert [0, *add_noise(sample["target"][:-1], 0.2, vocab.code_start, generator)] == sample["prev_output_tokens"]


def test_samples_of_random_tasks_repeat(section: Section) -> None:
    for index in range(2):
        state = random.getstate(), torch.get_rng_state()
        first, second = section.dataset[index], section.dataset[index]
        assert isinstance(first, dict) and isinstance(second, dict)
        assert torch.equal(first["prev_output_tokens"], second["prev_output_tokens"])
        if "patch_image" in first:
            assert torch.equal(first["patch_image"], second["patch_image"])
        assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
