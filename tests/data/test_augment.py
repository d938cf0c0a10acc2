"""Training transform of classification, against golden figures; repeatable randomness."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.augment import imagenet_train_transform, seeded
from data.images import decode_base64, decode_image

GOLDEN = Path(__file__).parents[1] / "golden"
SECTION = json.loads((GOLDEN / "samples_image_classify.json").read_text())["train"]
ROWS = (GOLDEN / "tsv" / SECTION["file"]).read_text().splitlines()
TRANSFORM = imagenet_train_transform(32)


def picture(row: int) -> Image.Image:
    return decode_image(decode_base64(ROWS[row].split("\t")[0]))


def set_seeds(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture(scope="module")
def transform_480() -> Any:
    return imagenet_train_transform(480, imagenet_mean_std=True)


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_golden_images(row: int, transform_480: Any) -> None:
    golden = SECTION["samples"][row]["patch_image"]
    set_seeds(1000 + row)
    result = transform_480(picture(row))
    assert list(result.shape) == golden["shape"] and result.dtype == torch.float32
    assert [result[c, y, x].item() for c, y, x, _ in golden["probes_c_y_x_value"]] == pytest.approx(
        [value for *_, value in golden["probes_c_y_x_value"]], abs=1e-5
    )
    assert result.mean().item() == pytest.approx(golden["mean"], abs=1e-5)
    assert result.std(unbiased=False).item() == pytest.approx(golden["std"], abs=1e-5)
    assert result.mean(dim=(1, 2)).tolist() == pytest.approx(golden["channel_means"], abs=1e-5)


def test_rows_are_golden() -> None:
    assert len(ROWS) == len(SECTION["samples"]) == 7
    assert "--imagenet-default-mean-and-std" in SECTION["options"] and "1000 + i" in SECTION["seeding"]


def test_default_normalisation_is_a_half() -> None:
    results = [seeded_image(picture(0), row) for row in range(16)]
    whole = torch.cat([result for result in results if result.abs().max() <= 1])  # no noise erased a part
    assert len(whole) >= 3 * 8 and whole.min() == -1 and whole.max() == 1
    gray = (whole + 1) * 127.5
    torch.testing.assert_close(gray, gray.round(), rtol=0, atol=1e-4)


def seeded_image(image: Image.Image, row: int) -> Tensor:
    with seeded(random.Random(row)):
        return TRANSFORM(image)


def test_same_row_same_image_whatever_happened_before() -> None:
    results = []
    for noise in (1, 2):
        set_seeds(noise)
        results.append(seeded_image(picture(0), 5))
    assert torch.equal(*results)
    others = [seeded_image(picture(0), row) for row in range(6, 12)]
    assert not any(torch.equal(results[0], other) for other in others)


def draws() -> list[float]:
    return [random.random(), float(np.random.random()), torch.rand(()).item()]


def test_generators_go_on_where_they_were() -> None:
    set_seeds(3)
    expected = [draws(), draws()]
    set_seeds(3)
    first = draws()
    with seeded(random.Random(0)):
        inside = draws()
    assert [first, draws()] == expected
    set_seeds(3)
    with pytest.raises(KeyError), seeded(random.Random(0)):
        assert draws() == inside
        raise KeyError
    assert draws() == expected[0]


def test_each_generator_is_seeded_by_the_row() -> None:
    seen = []
    for row in (1, 1, 2):
        with seeded(random.Random(row)):
            seen.append(draws())
    assert seen[0] == seen[1]
    assert all(a != b for a, b in zip(seen[1], seen[2], strict=True))


class Images(Dataset[Tensor]):
    """Six augmented rows."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return seeded_image(picture(index), index)


def test_workers_do_not_change_images() -> None:
    alone, shared = (torch.cat(list(DataLoader(Images(), 2, num_workers=workers))) for workers in (0, 2))
    assert torch.equal(alone, shared)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_every_mode_is_made_rgb(mode: str) -> None:
    assert seeded_image(picture(0).convert(mode), 0).shape == (3, 32, 32)


def test_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        TRANSFORM(Image.new("RGB", (0, 5)))


def test_no_draw_fails_on_a_good_image() -> None:
    """The strongest posterize keeps 0 bits, which Pillow 13 refuses: about one draw in 300."""
    transform = imagenet_train_transform(8)
    for seed in range(1500):
        with seeded(random.Random(seed)):
            assert transform(Image.new("RGB", (8, 8), (255, 200, 0))).isfinite().all()
