"""Demo pretraining files: rows that every objective reads, and wrong texts to match against."""

from pathlib import Path

import pytest

from data.pretrain import PretrainDataset
from data.pretrain_rows import OBJECTIVES, PretrainData
from data.text import Vocabulary
from data.tsv import TsvFile
from digits.__main__ import main
from digits.pretrain import CODED_SIZE
from digits.vocabulary import BPE_DIR

CODES = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrain")
    assert main([str(out), "--tasks", "pretrain", "--size", "48", "--train", "24"]) == 0
    found = out / "pretrain_data"
    codes = " ".join(["7"] * CODES)  # what data.builders.image_codes adds
    for source, name in (
        ("picture_examples.tsv", "image_examples.tsv"),
        ("described_examples.tsv", "image_gen_examples.tsv"),
    ):
        lines = (found / source).read_text().splitlines()
        (found / name).write_text("".join(f"{line}\t{codes}\n" for line in lines))
    return found


def test_every_objective_is_there_and_known_words_only(folder: Path) -> None:
    vocab = Vocabulary.load(BPE_DIR, code_dict_size=512, num_bins=65)
    config = PretrainData(
        patch_image_size=48,
        num_bins=65,
        max_image_size=CODED_SIZE,
        code_image_size=CODED_SIZE // 2,
        largest_short_side=48,
        no_rand_augment=True,
        text_data=str(folder / "text_examples.tsv"),
        image_data=str(folder / "image_examples.tsv"),
        detection_data=str(folder / "detection_examples.tsv"),
        image_gen_data=str(folder / "image_gen_examples.tsv"),
        image_gen_selected_cols="0,3,4",
        neg_sample_dir=str(folder / "negative_sample"),
    )
    data = PretrainDataset(TsvFile(folder / "vision_language_examples.tsv"), vocab, config, "train")
    assert [len(data), *map(len, data.sources)] == [24, 6, 6, 6, 6]
    parts = data.collate_parts([data[row] for row in range(24 + 4 * 6)])
    seen = {OBJECTIVES[number] for part in parts for number in part["objective"].tolist()}  # type: ignore[typeddict-item]
    assert seen == set(OBJECTIVES)
    for part in parts:
        assert not (part["net_input"]["src_tokens"] == vocab.unk).any() and not (part["target"] == vocab.unk).any()
    assert parts[1]["net_input"]["patch_images"].shape[-1] == CODED_SIZE
