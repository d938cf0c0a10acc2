"""Caption samples and batches: the golden figures, and the rules for the caption text."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.base import DataConfig
from data.caption import CaptionDataset
from data.sample import Sample
from data.text import Vocabulary
from data.tsv import TsvFile

ROOT = Path(__file__).parents[2]
GOLDEN_TSV = ROOT / "tests" / "golden" / "tsv"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
SECTIONS = ("train", "valid", "train_scst")


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.load(ROOT / "utils" / "BPE")


@pytest.fixture(scope="module")
def caption_of(tmp_path_factory: pytest.TempPathFactory, vocab: Vocabulary) -> Callable[..., Sample]:
    """Sample of one row with the given caption."""
    folder = tmp_path_factory.mktemp("captions")

    def make(caption: str, split: str, scst: bool = False, max_tgt_length: int = 30) -> Sample:
        path = folder / f"{len(list(folder.iterdir()))}.tsv"
        path.write_text(f"7\t{PIXEL}\t{caption}\n", encoding="utf-8")
        config = DataConfig(patch_image_size=4, max_tgt_length=max_tgt_length)
        sample = CaptionDataset(TsvFile(str(path), "0,1,2"), vocab, config, split, scst=scst)[0]
        assert isinstance(sample, dict)
        return sample

    return make


def golden_config(options: list[str]) -> tuple[DataConfig, bool]:
    """Options of a golden section as a config, and whether it is self-critical training."""
    config = DataConfig()
    for option in options:
        name, _, value = option.removeprefix("--").partition("=")
        field = name.replace("-", "_")
        if field in ("scst", "scst_args"):
            continue
        assert hasattr(config, field)
        default = getattr(config, field)
        setattr(config, field, True if default is False else type(default)(value) if default else value)
    return config, "--scst" in options


@pytest.fixture(scope="module", params=SECTIONS)
def section(
    request: pytest.FixtureRequest, golden: Callable[[str], Any], vocab: Vocabulary, tmp_path_factory: Any
) -> tuple[dict[str, Any], CaptionDataset]:
    """Golden section and the dataset with its options over its file."""
    figures = golden("samples_caption.json")[request.param]
    path = tmp_path_factory.mktemp("golden") / "caption.tsv"
    shutil.copy(GOLDEN_TSV / figures["file"], path)
    config, scst = golden_config(figures["options"])
    rows = TsvFile(str(path), config.selected_cols)
    return figures, CaptionDataset(rows, vocab, config, figures["split"], scst=scst)


def test_references_are_the_texts_in_the_target(section: tuple[dict[str, Any], CaptionDataset]) -> None:
    figures, dataset = section
    batch = dataset.collater([dataset[index] for index in range(len(dataset))])
    if "&&" not in figures["note"] and "all captions" not in figures["note"]:
        assert "references" not in batch
        return
    for target, references in zip(batch["target"], batch["references"], strict=True):
        text = dataset.vocab.decode(target[target != dataset.vocab.pad])
        assert [each.strip() for each in text.split("&&")] == references


def text_of(vocab: Vocabulary, sample: Sample) -> str:
    return vocab.decode(sample["target"])


def test_training_keeps_the_first_words(vocab: Vocabulary, caption_of: Callable[..., Sample]) -> None:
    sample = caption_of("  One, two-and-a-half   THREE && four's . five", "train", max_tgt_length=4)
    assert text_of(vocab, sample) == " One twoandahalf THREE fours"
    assert "references" not in sample


@pytest.mark.parametrize(("split", "scst"), [("valid", False), ("test", True), ("train", True)])
def test_all_captions_are_kept(vocab: Vocabulary, caption_of: Callable[..., Sample], split: str, scst: bool) -> None:
    sample = caption_of(" A  cat. &&a  dog's tail&&Cat ", split, scst, max_tgt_length=1)
    assert text_of(vocab, sample) == " A cat&&a dogs tail&&Cat"
    assert sample["references"] == ["A cat", "a dogs tail", "Cat"]


def test_previous_tokens_are_the_target_moved_by_one(caption_of: Callable[..., Sample]) -> None:
    sample = caption_of("a red seven", "train")
    assert sample["prev_output_tokens"].tolist() == [0, *sample["target"].tolist()[:-1]]
    assert sample["target"].tolist()[-1] == 2 and sample["source"].tolist()[:1] == [0]
