"""Relative-position buckets: the figures of the specification."""

import pytest
import torch

from models.ofa.positions import grid_ids, image_buckets, token_buckets

TOKEN_SAMPLES = {
    1: (256, 254), 127: (382, 128), 128: (383, 127), 129: (384, 126), 131: (385, 125), 200: (411, 99), 256: (426, 84),
    512: (468, 42), 700: (487, 23), 900: (503, 7), 1000: (509, 1), 1007: (510, 0), 1023: (510, 0),
}  # fmt: skip


def test_token_buckets():
    table = token_buckets(256)
    assert table.shape == (1024, 1024) and int(table.sum()) == 267386880 and int(table[5, 5]) == 255
    for distance, (after, before) in TOKEN_SAMPLES.items():
        assert (int(table[distance, 0]), int(table[0, distance])) == (after, before)


def test_image_buckets():
    table = image_buckets(42)
    assert table.shape == (1765, 1765) and int(table.sum()) == 10740994071
    pairs = {(1, 1): 3444, (1, 2): 3443, (2, 1): 3445, (1, 43): 3361, (43, 1): 3527, (1764, 1): 6888, (1, 1764): 0}
    pairs |= {(0, 5): 6889, (5, 0): 6890, (0, 0): 6891}
    for (query, key), bucket in pairs.items():
        assert int(table[query, key]) == bucket


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (42, 42)])
def test_grid_ids_step_by_the_table_not_the_image(height, width):
    ids = grid_ids(height, width, 42).view(height, width)
    assert ids[0, 0] == 1 and torch.equal(ids, torch.arange(height)[:, None] * 42 + torch.arange(width) + 1)
