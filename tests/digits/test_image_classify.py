"""Demo classes: the number of a class, its name and the digit drawn agree."""

import pickle
from pathlib import Path

import pytest

from digits.scene import Scene
from digits.tasks import TASKS, chance
from digits.words import DIGITS

TASK = TASKS["image_classify"]


@pytest.mark.parametrize("file", range(3))
def test_label_name_and_image_agree(file: int) -> None:
    for number in range(20):
        scene, label, name = TASK.row(file, number, 1, 48)
        assert isinstance(scene, Scene)
        (spec,) = scene.specs
        assert spec.digit == name == DIGITS[int(str(label)) - 1]


def test_files_are_named_as_released(tmp_path: Path) -> None:
    TASK.write(tmp_path, {"train": 3, "val": 1, "test": 2}, seed=1, size=48)
    candidates = pickle.loads((tmp_path / "class2label_new.pkl").read_bytes())
    assert candidates == {name: label for label, name in enumerate(DIGITS)}
    lines = {path.name: path.read_text().count("\n") for path in tmp_path.glob("*.tsv")}
    assert lines == {"imagenet_1k_train.tsv": 3, "imagenet_1k_val_subset.tsv": 1, "imagenet_1k_val.tsv": 2}
    assert chance("image_classify") == pytest.approx(0.1)
