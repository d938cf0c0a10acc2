"""Decoding of the image column and the standard transform."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from data.images import IMAGENET_MEAN, IMAGENET_STD, decode, decode_base64, decode_image, image_size, standard_transform
from data.refcoco import RefcocoData, RefcocoDataset
from data.text import Vocabulary
from data.tsv import TsvFile

BPE_DIR = Path(__file__).parents[2] / "utils" / "BPE"


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_both_alphabets_and_their_mixture_decode() -> None:
    data = bytes(range(256)) + b"\xfb\xff\xfe"
    ordinary = base64.b64encode(data).decode()
    assert "+" in ordinary and "/" in ordinary
    for text in (ordinary, base64.urlsafe_b64encode(data).decode(), ordinary.replace("+", "-"), f" {ordinary}\r"):
        assert decode_base64(text) == data


@pytest.mark.parametrize("text", ["", "   ", "ab$d", "abcde", "ab=c", "aé==", "YWJj\nZGVm"])
def test_broken_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="base64|empty"):
        decode_base64(text)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_base64_of_other_makers(size: int) -> None:
    data = bytes(range(size))
    text = base64.b64encode(data).decode()
    for prefix in ("", "data:image/png;base64,", "DATA:image/jpeg;charset=utf-8;base64,", "data:;base64,"):
        assert decode_base64(prefix + text) == decode_base64(prefix + text.rstrip("=")) == data


@pytest.mark.parametrize(
    "text, words",
    [
        (str(base64.b64encode(b"abcdef")), "looks like the repr of Python bytes"),
        ('b"/9j/4A\'"', "looks like the repr of Python bytes"),
        ("train2014/COCO_000000000009.jpg", "looks like the path of a file"),
        ("C:\\photos\\a.PNG", "looks like the path of a file"),
        ("https://example.com/a", "looks like the path of a file"),
        ("image", "looks like a header row"),
        ("img", "looks like a header row"),
        ("image_base64", "looks like a header row"),
        ("Image B64", "looks like a header row"),
        ("pictures", "looks like a header row"),
        ("data:image/svg+xml;utf8,<svg/>", "not valid base64"),
        ("0.5", "not valid base64"),
        ("file_name", "looks like a header row"),
        ("NaN", "looks like a missing value"),
        ("'/9j/4AAQ'", "begins with a quote"),
        ("what is in the image?", "not valid base64"),
    ],
)
def test_what_is_no_base64_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_base64(text)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_every_kind_of_image_becomes_rgb(kind: str, mode: str) -> None:
    if (kind, mode) == ("JPEG", "P"):
        mode = "CMYK"  # JPEG has no palette but this
    image = decode_image(encoded(picture(7, 5, mode), kind))
    assert (image.mode, image.size) == ("RGB", (7, 5))


def test_transparency_is_dropped_not_blended() -> None:
    image = picture(4, 4).copy()
    image.putalpha(0)
    assert np.array_equal(np.array(decode_image(encoded(image, "PNG"))), np.array(picture(4, 4)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_image_keeps_its_first_rows(kind: str) -> None:
    whole = encoded(picture(64, 64), kind)
    cut = decode_image(whole[: len(whole) // 2])
    expected = np.array(decode_image(whole))
    assert cut.size == (64, 64)
    assert np.array_equal(np.array(cut)[:8], expected[:8])
    assert not np.array_equal(np.array(cut), expected)


@pytest.mark.parametrize("data", [b"", b"hello", encoded(picture(8, 8), "PNG")[:20], b"\xff\xd8\xff\xe0"])
def test_undecodable_data_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_image(data)


def test_images_that_pillow_has_other_programs_draw_are_refused() -> None:
    """PostScript is a program: Ghostscript would run it."""
    script = encoded(picture(8, 8), "EPS")
    in_dos = b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + len(script).to_bytes(4, "little") + bytes(18) + script
    for data in (script, in_dos):
        with pytest.raises(ValueError, match="cannot be decoded.*it is PostScript"):
            decode_image(data)


def test_images_that_are_too_thin_to_be_resized_are_refused() -> None:
    for size in ((2**20 + 1, 1), (1, 2**20 + 1)):
        with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels, more than 1048576 in a row"):
            decode_image(encoded(Image.new("1", size), "PNG"))
    assert decode_image(encoded(Image.new("1", (2**20, 1)), "PNG")).size == (2**20, 1)


def test_images_above_pillows_own_limit_of_pixels_are_read() -> None:
    # 200 million pixels are above the 179 million that Pillow refuses
    header = encoded(Image.new("1", (8, 8)), "PPM").split(b"\n")[0]
    big = header + b"\n20000 10000\n" + bytes(20000 // 8 * 10000)
    assert decode_image(big).size == image_size(big) == (20000, 10000)
    with pytest.raises(Image.DecompressionBombError):  # for others in the process nothing has changed
        Image.open(io.BytesIO(big))


@pytest.mark.parametrize("imagenet", [False, True])
@pytest.mark.parametrize("size", [(640, 480), (33, 90), (96, 96), (1, 1)])
def test_transform_equals_torchvision_bit_for_bit(size: tuple[int, int], imagenet: bool) -> None:
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else ((0.5,) * 3, (0.5,) * 3)
    bicubic = transforms.InterpolationMode.BICUBIC
    reference = transforms.Compose(
        [transforms.Resize((96, 96), bicubic), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    image = picture(*size)
    result = standard_transform(96, imagenet)(image)
    assert result.shape == (3, 96, 96) and result.dtype == torch.float32 and result.is_contiguous()
    assert torch.equal(result, reference(image))


def test_transform_of_a_known_color() -> None:
    result = standard_transform(4)(Image.new("L", (2, 9), 255))
    assert torch.equal(result, torch.ones(3, 4, 4))


def test_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        standard_transform(8)(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("size", [(64, 48), (37, 200), (3, 5), (1, 300), (300, 1), (224, 224), (1, 1)])
@pytest.mark.parametrize("side", [48, 224])
def test_the_fast_transform_differs_by_three_colors_of_256(size: tuple[int, int], side: int) -> None:
    exact, fast = (standard_transform(side, fast=fast)(picture(*size)) for fast in (False, True))
    assert fast.shape == exact.shape == (3, side, side) and fast.is_contiguous()
    differences = (exact - fast).abs() * 127.5
    assert differences.max() <= 3.01 and differences.mean() < 0.1


def smooth(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Few details, as a photograph of many pixels has."""
    return picture(8, 6).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "size, side, read",
    [
        ((800, 600), 100, (200, 150)),  # an eighth would be 100 x 75
        ((800, 600), 101, (400, 300)),
        ((800, 600), 50, (100, 75)),
        ((800, 600), 400, (800, 600)),
        ((601, 2000), 100, (151, 500)),
        ((90, 60), 100, (90, 60)),
    ],
)
def test_a_jpeg_that_becomes_a_square_may_be_decoded_smaller(
    mode: str, size: tuple[int, int], side: int, read: tuple[int, int]
) -> None:
    data = encoded(smooth(*size, mode), "JPEG")
    whole, smaller = decode(data), decode(data, side=side)
    assert whole.image.size == size and smaller.image.size == read
    assert (whole.mode, whole.damaged, whole.lying) == (smaller.mode, smaller.damaged, smaller.lying)
    exact, fast = (standard_transform(side, fast=fast)(x.image) for fast, x in enumerate((whole, smaller)))
    assert ((exact - fast).abs() * 127.5).mean() < 2
    assert decode(encoded(smooth(*size), "PNG"), side=side).image.size == size
    cut = decode(data[: len(data) * 3 // 4], side=side)
    assert cut.damaged and cut.image.size == read


@pytest.mark.parametrize("fast", [False, True])
def test_boxes_are_in_pixels_of_the_file(fast: bool, tmp_path: Path) -> None:
    data = base64.b64encode(encoded(smooth(800, 600), "JPEG")).decode()
    (tmp_path / "rows.tsv").write_text(f"1\t{data}\ta cup\t80,60,400.5,300\n")
    config = RefcocoData(patch_image_size=64, fast_decode=fast)
    dataset = RefcocoDataset(TsvFile(tmp_path / "rows.tsv", "0,1,2,3"), Vocabulary.load(BPE_DIR), config, "train")
    sample = dataset[0]
    assert sample["extras"]["region_coords"].tolist() == [80, 60, 400.5, 300]
    assert sample["extras"]["w_resize_ratios"] == torch.tensor(64 / 800)
