"""Images to code files and back: layouts, shares, resuming, range check, errors."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.builders.image_codes import encode_share, image_name, main, parse_args, parse_codes
from data.images import decode_image
from models.vqgan import VQGAN, VQGANConfig, from_pil, to_pil

SIZES = ((32, 32), (48, 32), (20, 40), (32, 32), (33, 35))


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> tuple[VQGAN, list[str]]:
    """A narrow VQGAN, and the flags that name its files."""
    torch.manual_seed(0)
    config = VQGANConfig(
        ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=8, embed_dim=8, n_embed=64
    )
    model = VQGAN(config).eval()
    torch.nn.init.normal_(model.quantize.proj.weight, std=4.0)  # several codes win
    folder = tmp_path_factory.mktemp("vqgan")
    model.save(folder / "last.ckpt", folder / "model.yaml")
    return model, [f"--vqgan-model-path={folder / 'last.ckpt'}", f"--vqgan-config-path={folder / 'model.yaml'}"]


@pytest.fixture
def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    encoded = []
    for width, height in SIZES:
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(out, format="PNG")
        encoded.append(out.getvalue())
    return encoded


@pytest.fixture
def run(tmp_path, pictures, released, monkeypatch):
    """Encode the images in a 2-column file to OUT with more flags; returns the rows."""
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache"))
    rows = (f"{number}\t{base64.b64encode(data).decode()}\n" for number, data in enumerate(pictures))
    (tmp_path / "in.tsv").write_text("".join(rows))

    def encode(out: str, *more: str) -> list[list[str]]:
        flags = ["--selected-cols=0,1", "--code-image-size=32", *released[1], *more]
        assert main(["encode", f"--file={tmp_path / 'in.tsv'}", f"--outputs={tmp_path / out}", *flags]) == 0
        return read(tmp_path / out) if (tmp_path / out).exists() else []

    return encode


def read(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def codes_of(model: VQGAN, picture: bytes, edge: int = 0) -> str:
    image = from_pil(decode_image(picture), 32)[None, :, edge : 32 - edge, edge : 32 - edge]
    return " ".join(map(str, model.encode(image)[0].tolist()))


def test_two_columns_give_id_and_codes(run, released, pictures):
    rows = run("out.tsv", "--batch-size=2")
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row[1] for row in rows] == [codes_of(released[0], image) for image in pictures]
    assert len({row[1] for row in rows}) == 5 and len(rows[0][1].split()) == 16


def test_four_columns_and_the_released_spelling(tmp_path, released, pictures, monkeypatch):
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache"))
    urlsafe = base64.urlsafe_b64encode(pictures[1]).decode()
    (tmp_path / "in.tsv").write_text(f"a cup\tpair7\t{urlsafe}\timage9\n")
    flags = ["--file", str(tmp_path / "in.tsv"), "--outputs", str(tmp_path / "out.tsv"), *released[1]]
    assert main(["encode", "--selected_cols", "1,3,2,0", "--code_image_size", "32", *flags]) == 0
    assert read(tmp_path / "out.tsv") == [["pair7", "image9", "a cup", codes_of(released[0], pictures[1])]]


def test_a_folder_gives_the_paths_as_ids(tmp_path, released, pictures):
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "b" / "x.PNG").write_bytes(pictures[0])
    (tmp_path / "in" / "a.png").write_bytes(pictures[1])
    (tmp_path / "in" / "notes.txt").write_text("no image")
    flags = ["--file", str(tmp_path / "in"), "--outputs", str(tmp_path / "out.tsv"), "--code-image-size=32"]
    assert main(["encode", *flags, *released[1]]) == 0
    expected = [["a", codes_of(released[0], pictures[1])], ["b/x", codes_of(released[0], pictures[0])]]
    assert read(tmp_path / "out.tsv") == expected


def test_the_centre_is_encoded_on_its_own(run, released, pictures):
    assert [row[1] for row in run("out.tsv", "--crop=16")] == [codes_of(released[0], image, 8) for image in pictures]


def test_draws_depend_on_seed_and_row_only(run):
    drawn = run("a.tsv", "--sample", "--batch-size=5")
    assert drawn == run("b.tsv", "--sample", "--batch-size=2")
    assert drawn != run("c.tsv", "--sample", "--seed=8") and drawn != run("d.tsv")


def test_ranks_make_the_same_rows(run, tmp_path):
    whole = run("out.tsv", "--sample")
    parts = []
    for rank in range(3):
        run("part.tsv", "--sample", "--world-size=3", f"--rank={rank}")
        parts += read(tmp_path / f"part.tsv.{rank}-of-3")
    assert parts == whole


def test_workers_make_the_same_rows(run, tmp_path):
    assert run("workers.tsv", "--workers=2", "--sample") == run("out.tsv", "--sample")
    assert not list(tmp_path.glob("*.part"))


def test_the_error_of_a_worker_reaches_the_user(run, tmp_path, released, capsys):
    (tmp_path / "bad.tsv").write_text("0\t!!\n1\t!!\n")
    flags = [f"--file={tmp_path / 'bad.tsv'}", f"--outputs={tmp_path / 'x.tsv'}", "--code-image-size=32", *released[1]]
    assert main(["encode", *flags, "--selected-cols=0,1", "--workers=2"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"error: {tmp_path / 'bad.tsv'}" in error and "not valid base64" in error


def test_an_interrupted_run_goes_on_where_it_was(run, tmp_path, released, monkeypatch):
    whole = run("out.tsv")
    calls = []
    encode = VQGAN.encode

    def die_at_third(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(VQGAN, "encode", die_at_third)
    with pytest.raises(AssertionError, match="assert 130 == 0"):
        run("again.tsv", "--batch-size=1")
    assert not (tmp_path / "again.tsv").exists()
    (part,) = tmp_path.glob("again.tsv.*.part")
    with open(part, "ab") as file:
        file.write(b"2\t17 4")  # a torn line
    assert run("again.tsv", "--batch-size=1") == whole
    assert len(calls) == 6 and not list(tmp_path.glob("*.part"))  # 2 rows and the death, then 3 rows


def test_a_part_of_other_options_is_not_continued(run, tmp_path, released):
    flags = ["encode", f"--file={tmp_path / 'in.tsv'}", f"--outputs={tmp_path / 'x.tsv'}", "--selected-cols=0,1"]
    encode_share(parse_args([*flags, "--code-image-size=16", *released[1]]), 0, 1)
    assert len(list(tmp_path.glob("x.tsv.*.part"))) == 1
    assert all(len(row[1].split()) == 16 for row in run("x.tsv"))


def test_images_of_codes(run, tmp_path, released):
    rows = run("out.tsv")
    flags = [f"--file={tmp_path / 'out.tsv'}", f"--outputs={tmp_path / 'png'}", "--selected-cols=0,1", *released[1]]
    assert main(["decode", *flags, "--batch-size=2"]) == 0
    for name, codes in rows:
        expected = to_pil(released[0].decode(parse_codes(codes, 64)[None]))[0]
        found = np.asarray(Image.open(tmp_path / "png" / f"{name}.png")).astype(int)
        assert np.abs(found - np.asarray(expected)).max() <= 1  # batches round differently
    (tmp_path / "png" / "3.png").unlink()
    (tmp_path / "png" / "1.png").write_bytes(b"kept")
    assert main(["decode", *flags]) == 0
    assert (tmp_path / "png" / "3.png").exists() and (tmp_path / "png" / "1.png").read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a\t1 2 3 64\n", "line 1: a code is outside 0..63"),
        ("a\t1 2 3 4\nb\t1 2 3\n", "line 2: 3 codes do not make a square"),
        ("a\t1 2 3 4\nb\t5\n", "line 2: the row has 1 codes, the first row 4"),
        ("a\t1 x 3 4\n", "line 1: the codes are not integers"),
        ("a/b\t1\na_b\t1\n", "has the id a_b.png twice"),
        ("a\n", "line 1: the row has 1 columns"),
    ],
)
def test_bad_code_rows_are_named(tmp_path, released, capsys, monkeypatch, rows, message):
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "codes.tsv").write_text(rows)
    flags = [f"--file={tmp_path / 'codes.tsv'}", f"--outputs={tmp_path / 'png'}", "--selected-cols=0,1", *released[1]]
    assert main(["decode", *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and "--skip-bad-rows" not in error


@pytest.mark.parametrize(
    ("row", "message"),
    [("0\t!!\n", "line 1: the image is not valid base64"), ("0\taGVsbG8=\n", "line 1: the image cannot be decoded")],
)
def test_bad_images_are_named(run, tmp_path, released, capsys, row, message):
    (tmp_path / "bad.tsv").write_text(row)
    flags = [f"--file={tmp_path / 'bad.tsv'}", f"--outputs={tmp_path / 'x.tsv'}", "--code-image-size=32", *released[1]]
    assert main(["encode", *flags, "--selected-cols=0,1"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x.tsv").exists()


def test_bad_images_are_skipped_and_counted(run, tmp_path, capsys):
    """The others have the codes that they would have had; a rank without a good image writes an empty file."""
    whole = run("out.tsv", "--sample")
    lines = (tmp_path / "in.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "in.tsv").write_text("".join(["0\t!!\n", lines[1], "2\taGVsbG8=\n", *lines[3:]]))
    assert run("few.tsv", "--sample", "--skip-bad-rows", "--batch-size=2") == [whole[1], *whole[3:]]
    shown = "".join(capsys.readouterr())
    assert "2 rows of " in shown and f"skipped: {tmp_path}/in.tsv, line 3: the image cannot be decoded" in shown
    parts = []
    for rank in range(5):
        run("part.tsv", "--sample", "--skip-bad-rows", "--world-size=5", f"--rank={rank}")
        parts += read(tmp_path / f"part.tsv.{rank}-of-5")
    assert parts == [whole[1], *whole[3:]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--selected-cols=0,1,2"], "name 2 columns"),
        (["--selected-cols=0,1", "--code-image-size=30"], "does not make whole codes"),
        (["--selected-cols=0,1", "--crop=40"], "does not make whole codes"),
        (["--selected-cols=0,1", "--rank=1"], "--rank below"),
        (["--selected-cols=0,1", "--world-size=9"], "9 processes cannot share 5"),
        (["--selected-cols=0,1", "--vqgan-model-path=none.ckpt"], "There is no none.ckpt"),
    ],
)
def test_impossible_flags_are_one_sentence(run, tmp_path, released, capsys, flags, message):
    common = [f"--file={tmp_path / 'in.tsv'}", f"--outputs={tmp_path / 'x.tsv'}", "--code-image-size=32", *released[1]]
    assert main(["encode", *common, *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_finished_file_is_not_overwritten(run, tmp_path, released, capsys):
    run("out.tsv")
    common = [
        f"--file={tmp_path / 'in.tsv'}",
        f"--outputs={tmp_path / 'out.tsv'}",
        "--code-image-size=32",
        *released[1],
    ]
    assert main(["encode", *common, "--selected-cols=0,1"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_file_names_are_safe_and_distinct():
    assert image_name("a cup/mug") == "a cup_mug.png"
    long = [image_name("ü" * 300 + end) for end in "ab"]
    assert long[0] != long[1] and all(len(name.encode()) <= 200 for name in long)
