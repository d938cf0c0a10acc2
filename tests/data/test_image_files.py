"""Image files of every mode and condition: their values, their orientation, their size, their damage."""

import io
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from data.images import TooLargeError, decode, image_size, orientation, to_rgb

CASES = Path(__file__).parents[1] / "cases"
# Every mode of Pillow 12; BGR modes are gone.
MODES = (
    "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV I I;16 I;16B I;16L I;16N F"
).split()  # fmt: skip
SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ramp() -> Image.Image:
    """Gray of 0 to 255 from left to right."""
    return Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (4, 1)))


def in_mode(mode: str) -> Image.Image:
    """The ramp in a mode, opaque."""
    gray = ramp()
    if mode in SIXTEEN:
        kind = {"I;16B": ">u2"}.get(mode, "<u2")
        values = np.asarray(gray).astype(kind) * 256
        return Image.frombytes(mode, gray.size, values.astype(kind).tobytes())
    if mode == "La":
        return gray.convert("LA").convert("La")
    if mode == "RGBa":
        return gray.convert("RGBA").convert("RGBa")
    if mode == "PA":
        return gray.convert("P").convert("PA")
    if mode == "LAB":
        return Image.merge("LAB", (gray, Image.new("L", gray.size, 128), Image.new("L", gray.size, 128)))
    if mode == "HSV":
        return gray.convert("RGB").convert("HSV")
    if mode in ("CMYK", "YCbCr"):
        return gray.convert("RGB").convert(mode)
    return gray.convert(mode)


@pytest.mark.parametrize("on_white", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_the_same_image_or_is_named(mode: str, on_white: bool) -> None:
    image = in_mode(mode)
    assert image.mode == mode
    if mode in ("I", "F"):
        with pytest.raises(ValueError, match=rf"\(mode {mode}\), whose range is unknown: save it with 8 or 16 bits"):
            to_rgb(image, on_white)
        return
    picture = to_rgb(image, on_white)
    assert picture.mode == "RGB" and picture.size == image.size and picture is not image
    gray = np.asarray(ramp()).astype(int)
    if mode == "1":
        assert set(np.asarray(picture).ravel()) == {0, 255}
    elif mode == "LAB":  # lightness is not linear
        levels = np.asarray(picture)[0, :, 1].astype(int)
        assert levels[0] <= 2 and levels[-1] >= 253 and (np.diff(levels) >= 0).all() and len(set(levels)) > 150
    else:
        assert np.abs(np.asarray(picture).astype(int) - gray[:, :, None]).max() <= 1


@pytest.mark.parametrize("mode", ALPHA)
def test_what_is_transparent_is_white_or_as_released(mode: str) -> None:
    image = in_mode("LA" if mode in ("LA", "La") else "PA" if mode == "PA" else "RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image = image.convert(mode) if mode in ("La", "RGBa") else image
    assert image.mode == mode and set(np.asarray(to_rgb(image, on_white=True)).ravel()) == {255}
    if mode not in ("La", "RGBa"):  # in which the colors are gone
        assert np.array_equal(np.asarray(to_rgb(image))[..., 0], np.asarray(ramp()))


@pytest.mark.parametrize(
    ("bits", "key", "row"), [(1, 1, b"\x50"), (2, 1, b"\x1b"), (4, 5, b"\x05\xf5"), (8, 85, b"\x00\x55\xaa\xff")]
)
def test_a_transparent_gray_level_of_few_bits_is_white(bits: int, key: int, row: bytes) -> None:
    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = part(b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0))
    pixels = part(b"IDAT", zlib.compress(b"\x00" + row))
    data = b"\x89PNG\r\n\x1a\n" + header + part(b"tRNS", struct.pack(">H", key)) + pixels + part(b"IEND", b"")
    levels = [(int.from_bytes(row) >> (8 * len(row) - bits * (x + 1))) % 2**bits for x in range(4)]
    gray = [255 * level // (2**bits - 1) for level in levels]
    shown, stored = (np.array(decode(data, on_white=white).image)[0, :, 0].tolist() for white in (True, False))
    assert key in levels and stored == gray
    assert shown == [255 if level == key else value for level, value in zip(levels, gray, strict=True)]


def test_half_transparent_black_is_gray_on_white() -> None:
    image = Image.new("RGBA", (3, 3), (0, 0, 0, 128))
    assert set(np.asarray(to_rgb(image, on_white=True)).ravel()) == {127}


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_transparent_color_is_white(mode: str, kind: str) -> None:
    if (mode, kind) == ("RGB", "GIF"):
        return  # GIF has no such mode
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white" if mode == "1" else (90, 90, 90), (0, 0, 8, 4))
    image = image.convert(mode)
    clear = {"RGB": (0, 0, 0), "P": image.getpixel((0, 7))}.get(mode, 0)
    data = encoded(image, kind, transparency=clear)
    assert np.asarray(decode(data, on_white=True).image)[7, 7].tolist() == [255] * 3
    assert np.asarray(decode(data).image)[7, 7].tolist() == [0] * 3


def test_a_transparent_color_of_sixteen_bits_is_white() -> None:
    values = np.full((2, 2), 60000, np.uint16)
    values[0, 0] = 1000
    data = encoded(Image.fromarray(values), "PNG", transparency=1000)
    assert np.asarray(decode(data, on_white=True).image)[..., 0].tolist() == [[255, 234], [234, 234]]
    image = Image.new("RGB", (2, 1), (3, 7, 11))
    image.info["transparency"] = (1000, 2000, 3000)  # as Pillow reads a PNG of 16 bits a color
    assert set(np.asarray(to_rgb(image, on_white=True)).ravel()) == {255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bit_gray_keeps_its_levels(kind: str) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16
    image = np.asarray(decode(encoded(Image.fromarray(values), kind)).image).astype(int)
    assert np.abs(image - (values // 256)[:, :, None]).max() <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_files_without_a_known_range_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode}"):
        decode(encoded(in_mode(mode), "TIFF"))


def test_gray16_case() -> None:
    picture = np.asarray(decode((CASES / "gray16.png").read_bytes()).image)
    with Image.open(CASES / "gray16.png") as image:
        expected = np.asarray(image).astype(int) // 256
    assert len(np.unique(picture)) == 96 and np.abs(picture.astype(int) - expected[:, :, None]).max() <= 1


def test_black_on_transparent_case() -> None:
    data = (CASES / "rgba_black_on_transparent.png").read_bytes()
    assert set(np.asarray(decode(data, on_white=True).image).ravel()) == {0, 255}
    assert set(np.asarray(decode(data).image).ravel()) == {0}


def stored_turned(orientation: int) -> tuple[Image.Image, bytes]:
    """An upright image and the JPEG file of a camera that was held otherwise."""
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste("red", (0, 0, 16, 16))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    return upright, encoded(upright if undo is None else upright.transpose(undo), "PNG", exif=exif)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_every_orientation_is_turned_upright_on_demand_only(number: int) -> None:
    upright, data = stored_turned(number)
    found = decode(data, upright=True)
    assert np.array_equal(np.asarray(found.image), np.asarray(upright))
    assert found.lying == (2 <= number <= 8)
    with Image.open(io.BytesIO(data)) as stored:
        assert np.array_equal(np.asarray(decode(data).image), np.asarray(stored))


def test_exif6_case() -> None:
    data = (CASES / "exif6.jpg").read_bytes()
    assert decode(data).image.size == (96, 48) and decode(data, upright=True).image.size == (48, 96)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"\0" * 30])
def test_damaged_exif_is_upright(exif: bytes) -> None:
    data = encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert decode(data, upright=True).image.size == (8, 4) and not decode(data).lying
    assert orientation(Image.new("RGB", (2, 2))) == 1


def test_bomb_case_is_refused_by_its_header() -> None:
    data = (CASES / "bomb.png").read_bytes()
    for read in (decode, image_size):
        with pytest.raises(TooLargeError, match="20000 x 20000 = 400000000 pixels, more than the 268435456"):
            read(data)
    assert image_size(data, 4 * 10**8) == (20000, 20000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "ICNS", "AVIF"])
def test_the_limit_holds_for_every_format(kind: str) -> None:
    data = encoded(Image.new("RGB", (64, 64)), kind)
    width, height = image_size(data)
    assert decode(data, width * height).image.size == (width, height)
    with pytest.raises(TooLargeError, match=f"pixels, more than the {width * height - 1} that --max-image-pixels"):
        decode(data, width * height - 1)


def test_a_bomb_inside_an_icon_is_refused() -> None:
    inner = encoded(Image.new("1", (3000, 3000)), "PNG")
    icon = b"\0\0\1\0\1\0" + bytes([16, 16, 0, 0, 1, 0, 32, 0])
    data = icon + len(inner).to_bytes(4, "little") + (22).to_bytes(4, "little") + inner
    with pytest.raises(TooLargeError, match="pixels, more than the 1000000"):
        decode(data, 10**6)


def test_pillows_globals_are_left_alone() -> None:
    program = (
        "from PIL import Image, ImageFile; before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES\n"
        "import data.images, data.base, models.predictor\n"
        "import metrics.fid, data.builders.image_codes, data.builders.pretrain\n"
        "assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES), before"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    bomb, half = (CASES / "bomb.png").read_bytes(), (CASES / "trunc_half.jpg").read_bytes()

    def read() -> None:
        for _ in range(20):
            assert decode(half).damaged
            with pytest.raises(TooLargeError):
                decode(bomb)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000"])
def test_half_a_file_is_read_and_called_damaged(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert not decode(data).damaged
    half = decode(data[: len(data) // 2])
    assert half.damaged and half.image.size == (64, 64)


def test_trunc_half_case() -> None:
    found = decode((CASES / "trunc_half.jpg").read_bytes())
    assert found.damaged and found.image.size == (200, 200)
