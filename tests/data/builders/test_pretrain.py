"""From images and annotations to pretraining files that the checker and the dataset take."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data import validate
from data.builders.pretrain import main, mentioned, store
from data.images import decode_base64, decode_image
from data.pretrain import PretrainDataset
from data.pretrain_rows import PretrainData
from data.text import Vocabulary
from data.tsv import TsvFile
from models.vqgan import VQGAN, VQGANConfig

SIZES = [(40, 30), (30, 40), (64, 64)]  # width, height


def save(folder: Path, name: str, content: Any) -> Path:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder / name


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Three images and annotations of every kind in COCO's form."""
    folder = tmp_path / "coco"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = []
    for number, (width, height) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
    captions = ["a cat\tbeside two dogs", "Nothing here&&there", "the catalogue"]
    told = [{"id": 10 + n, "image_id": n, "caption": text} for n, text in enumerate(captions)]
    boxes = [(0, 7, [2, 3, 20, 10]), (0, 9, [30, 20, 50, 50]), (0, 9, [39.5, 0, 5, 5]), (2, 7, [1, 1, 60, 60])]
    objects = [
        {"id": 20 + n, "image_id": image, "category_id": category, "bbox": box}
        for n, (image, category, box) in enumerate(boxes)
    ]
    names = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}, {"id": 11, "name": "car"}]
    save(folder, "captions.json", {"images": images, "annotations": told})
    save(folder, "instances.json", {"images": images, "annotations": objects, "categories": names})
    save(folder, "refs.json", [{"ref_id": 5, "image_id": 0, "ann_id": 20, "sentences": [{"sent": "left cat"}]}])
    ask = [{"question_id": 30 + n, "image_id": n, "question": "How many dogs?"} for n in (0, 1)]
    answers = [{"question_id": 30, "image_id": 0, "answers": [{"answer": "2"}] * 8 + [{"answer": "3"}] * 2}]
    answers.append({"question_id": 31, "image_id": 1, "answers": [{"answer": "0"}] * 10})
    save(folder, "questions.json", {"questions": ask})
    save(folder, "answers.json", {"annotations": answers})
    (folder / "texts.txt").write_text("One text  of words.\n\n another one\n", encoding="utf-8")
    return folder


@pytest.fixture
def vqgan(tmp_path: Path) -> list[str]:
    torch.manual_seed(0)
    config = VQGANConfig(
        ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=8, embed_dim=8, n_embed=64
    )
    VQGAN(config).save(tmp_path / "last.ckpt", tmp_path / "model.yaml")
    return [f"--vqgan-model-path={tmp_path}/last.ckpt", f"--vqgan-config-path={tmp_path}/model.yaml"]


def needed(coco: Path) -> list[str]:
    return [f"--images={coco}/images", f"--captions={coco}/captions.json", f"--instances={coco}/instances.json"]


def everything(coco: Path) -> list[str]:
    more = [f"--refs={coco}/refs.json", f"--questions={coco}/questions.json", f"--texts={coco}/texts.txt"]
    return [*needed(coco), *more, f"--vqa-annotations={coco}/answers.json"]


def rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_objective_is_learnt_from_the_files(coco: Path, vqgan: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*everything(coco), *vqgan, f"--output={out}"]) == 0
    assert sorted(path.name for path in out.rglob("*")) == sorted([
        "vision_language_examples.tsv", "detection_examples.tsv", "text_examples.tsv", "image_examples.tsv",
        "negative_sample", "all_captions.txt", "object.txt", "type2ans.json",
    ])  # fmt: skip
    for kind, name in (("", "vision_language"), ("_text", "text"), ("_image", "image"), ("_detection", "detection")):
        argv = [f"pretrain{kind}", f"{out}/{name}_examples.tsv", "--workers=0"]
        assert validate.main(argv if kind else [*argv, f"--neg-sample-dir={out}/negative_sample"]) == 0, name
    sources: dict[str, Any] = {f"{name}_data": f"{out}/{name}_examples.tsv" for name in ("text", "image", "detection")}
    config = PretrainData(patch_image_size=32, neg_sample_dir=f"{out}/negative_sample", **sources)
    vocab = Vocabulary.load(validate.BPE_DIR)
    pairs = TsvFile(out / "vision_language_examples.tsv", "0,1,2,3,4,5,6,7")
    dataset = PretrainDataset(pairs, vocab, config, "train")
    numbers = range(len(dataset) + sum(map(len, dataset.sources)))
    samples: list[Any] = [dataset[number] for number in numbers]
    told = [vocab.decode(one["source"]) for sample in samples for one in (sample, sample.get("second")) if one]
    for words in (
        "what does the image describe?", 'does the image describe "', "how many dogs?", "the answer to question",
        "which region does the text", "what does the region describe?", "what is the complete text of",
        "what is the image in the middle part?", "what are the objects in the image?",
    ):  # fmt: skip
        assert any(words in source for source in told), words
    first, second = dataset.collate_parts(samples)
    assert first["nsentences"] == 2 * len(dataset) and second["nsentences"] == 2 + 3 + 2


def test_rows_of_the_pairs(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([*everything(coco), f"--output={out}", "--dataset-name=cc12m"]) == 0
    found = {row[0]: row for row in rows(out / "vision_language_examples.tsv")}
    assert list(found) == ["caption_10", "qa_30", "region_5", "caption_11", "qa_31", "caption_12"]
    assert {row[6] for row in found.values()} == {"cc12m"}
    assert found["caption_10"][2:6] == ["a cat beside two dogs", "", "", "cat&&dog"]
    assert found["caption_11"][2] == "Nothing here&there" and found["caption_12"][5] == ""
    assert found["qa_30"][2:6] == ["", "How many dogs?", "1.0|!+2&&0.6|!+3", "dog"] and found["qa_30"][7] == "qa"
    assert found["region_5"][2:5] == ["left cat", "", "2.00,3.00,22.00,13.00"]
    for row in found.values():
        number = {"10": 0, "30": 0, "5": 0, "11": 1, "31": 1, "12": 2}[row[0].split("_")[1]]
        assert decode_base64(row[1]) == (coco / "images" / f"{number}.png").read_bytes()
    assert [row[2] for row in rows(out / "detection_examples.tsv")] == [
        "2.00,3.00,22.00,13.00,7,cat&&30.00,20.00,40.00,30.00,9,dog", "1.00,1.00,61.00,61.00,7,cat"
    ]  # fmt: skip
    assert rows(out / "text_examples.tsv") == [["1", "One text of words."], ["3", "another one"]]
    assert (out / "negative_sample/object.txt").read_text() == "cat\ndog\ncar\n"
    assert json.loads((out / "negative_sample/type2ans.json").read_text())["how many"] == ["2", "0"]
    output = capsys.readouterr().out
    assert "image_examples.tsv is not written: no --vqgan-model-path" in output
    assert "1 boxes with less than a pixel" in output and "6 rows -> " in output


def test_only_captions_and_objects(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([*needed(coco), f"--output={out}"]) == 0
    assert [row[7] for row in rows(out / "vision_language_examples.tsv")] == ["caption"] * 3
    assert not (out / "text_examples.tsv").exists()
    output = capsys.readouterr().out
    assert "text_examples.tsv is not written: no --texts" in output and "no rows of questions and grounding" in output
    argv = ["pretrain", f"{out}/vision_language_examples.tsv", "--workers=0"]
    assert validate.main([*argv, f"--neg-sample-dir={out}/negative_sample"]) == 0


def test_images_and_boxes_shrink_together(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*everything(coco), f"--output={out}", "--max-side=20"]) == 0
    first, second = rows(out / "detection_examples.tsv")
    assert decode_image(decode_base64(first[1])).size == (20, 15) and first[2].startswith("1.00,1.50,11.00,6.50,7,")
    assert decode_image(decode_base64(second[1])).size == (20, 20) and second[2] == "0.31,0.31,19.06,19.06,7,cat"
    assert store((coco / "images/0.png").read_bytes(), 40).scale == (1, 1)


def test_a_square_has_the_codes_of_its_middle(coco: Path, vqgan: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*needed(coco), *vqgan, f"--output={out}"]) == 0
    model = VQGAN.load(vqgan[0].partition("=")[2], vqgan[1].partition("=")[2], "cpu")
    for name, picture, codes in rows(out / "image_examples.tsv"):
        image = decode_image(decode_base64(picture))
        assert image.size == (256, 256) and name in "012"
        pixels = torch.from_numpy(np.array(image.crop((64, 64, 192, 192)))).permute(2, 0, 1) / 127.5 - 1
        assert model.encode(pixels[None])[0].tolist() == [int(code) for code in codes.split()]


def test_names_are_found_as_words() -> None:
    assert mentioned("two cats, a bus stop and buses", ["cat", "bus", "stop", "cat", "us"]) == ["cat", "bus", "stop"]


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_bad_images_stop_the_program_or_are_counted(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    image = coco / "images/1.png"
    image.unlink() if damage == "missing" else image.write_bytes(b"no image")
    out = tmp_path / "out"
    assert main([*everything(coco), f"--output={out}"]) == 2
    error = capsys.readouterr().err
    assert str(image) in error and "cannot be read" in error and "--skip-bad-rows" in error
    assert not [path for path in out.rglob("*") if path.is_file()]  # nothing half-done
    assert main([*everything(coco), f"--output={out}", "--skip-bad-rows"]) == 0
    assert "1 entries or images were skipped" in capsys.readouterr().out
    assert len(rows(out / "vision_language_examples.tsv")) == 4
    negatives = out / "negative_sample"  # without those of what was skipped
    assert (negatives / "all_captions.txt").read_text() == "a cat beside two dogs\nthe catalogue\n"
    assert json.loads((negatives / "type2ans.json").read_text())["how many"] == ["2", "1"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--questions=q.json"], "--vqa-annotations go together"),
        (["--vqgan-model-path=x"], "--vqgan-config-path go together"),
        (["--vqgan-model-path=x", "--vqgan-config-path=y"], "There is no x"),
        (["--images=/nowhere"], "There is no folder /nowhere"),
        (["--texts=/nowhere.txt"], "/nowhere.txt cannot be read"),
        (["--max-side=0"], "--max-side is 0"),
        (["--dataset-name=a b"], "pass a word"),
        (["--captions=/nowhere.json"], "/nowhere.json cannot be read"),
    ],
)
def test_wrong_flags(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert main([*needed(coco), f"--output={tmp_path / 'out'}", *flags]) == 2
    assert words in capsys.readouterr().err


def test_what_exists_is_not_overwritten(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/text_examples.tsv").write_text("mine\n")
    assert main([*everything(coco), f"--output={tmp_path / 'out'}"]) == 2
    assert "text_examples.tsv exists already" in capsys.readouterr().err
    assert (tmp_path / "out/text_examples.tsv").read_text() == "mine\n"


def test_too_little_to_draw_wrong_texts_from(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((coco / "instances.json").read_text())
    content["categories"], content["annotations"] = content["categories"][:1], content["annotations"][:1]
    save(coco, "instances.json", content)
    assert main([*needed(coco), f"--output={tmp_path / 'out'}"]) == 2
    assert "1 different categories; matching needs at least two" in capsys.readouterr().err


def test_a_text_that_is_not_utf_8(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (coco / "texts.txt").write_bytes(b"good\n\xff\n")
    assert main([*everything(coco), f"--output={tmp_path / 'out'}"]) == 2
    assert "texts.txt, line 2 is not UTF-8" in capsys.readouterr().err


def test_no_image() -> None:
    with pytest.raises(ValueError, match="not a format that Pillow reads"):
        store(b"x", None)
