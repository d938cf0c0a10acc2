"""From the files that datasets are published as to data files: the samples of the released ones, row by row."""

import contextlib
import io
import json
import os
import pickle
import shlex
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data.answers import read_answers
from data.builders import build as program
from data.builders import manifests
from data.builders.build import LAYOUTS, main
from data.tables import open_rows
from data.tasks import TASKS
from data.text import Vocabulary
from data.tsv import TsvFile
from metrics.cider import CiderD, reward_text
from metrics.coco_caption import main as coco_scores
from models.vqgan import VQGAN, VQGANConfig
from tests.originals import COCO, save, write_originals
from tests.programs import ROOT
from utils.plain_pickle import load_plain_pickle


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    return write_originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.load(ROOT / "digits/BPE", code_dict_size=16, num_bins=65)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def columns_of(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def samples(task: str, path: Path, vocab: Vocabulary, split: str, cols: str | None = None) -> list[dict[str, Any]]:
    """What training or evaluation reads of a file."""
    kind = TASKS[task]
    config = kind.config()
    config.patch_image_size = 32
    rows = open_rows(str(path), cols or kind.selected_cols, kind, config, split == "train")
    dataset = kind.dataset(rows, vocab, config, split)
    dataset.needs_references = split == "train"
    return [dataset[number] for number in range(len(dataset))]


def assert_same(one: Any, two: Any) -> None:
    """Equal samples, whatever their ids."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one.keys() - {"id"}:
            assert_same(one[key], two[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, list):
        assert len(one) == len(two)
        for pair in zip(one, two, strict=True):
            assert_same(*pair)
    else:
        assert one == two


def data_file(folder: Path, name: str) -> Path:
    (path,) = (path for path in folder.glob(f"*/{name}.*") if path.suffix in (".tsv", ".jsonl"))
    return path


CAPTIONS = ["--images", "caption", "--train", "captions_train2014.json", "--val", "captions_val2014.json"]
QUESTIONS = ["v2_OpenEnded_mscoco_{}2014_questions.json", "v2_mscoco_{}2014_annotations.json"]
COMMANDS = {
    "caption": [*CAPTIONS, "--test", "captions_test2014.json"],
    "vqa_gen": [
        "--images", "vqa/train2014", "vqa/val2014", *(word for split in ("train", "val")
        for word in (f"--{split}", *(name.format(split) for name in QUESTIONS))),
    ],
    "refcoco": ["--images", "refcoco", "--annotations", "refs.json", "instances.json"],
}  # fmt: skip
BUILT = [
    ("caption", "caption_stage1_train", "train"),
    ("caption", "caption_val", "valid"),
    ("caption", "caption_test", "test"),
    ("vqa_gen", "vqa_train", "train"),
    ("vqa_gen", "vqa_val", "valid"),
    ("refcoco", "refcoco_train", "train"),
    ("refcoco", "refcoco_val", "valid"),
    ("refcoco", "refcoco_testA", "test"),
]


@pytest.fixture(scope="module", params=[False, True], ids=["jsonl", "tsv"])
def built(originals: Path, tmp_path_factory, request) -> Path:
    """The folder of all three tasks, as JSON lines and as TSV."""
    out: Path = tmp_path_factory.mktemp("built")
    for task, words in COMMANDS.items():
        paths = [word if word.startswith("--") else str(originals / "coco" / word) for word in words]
        assert main([task, *paths, f"--output={out}", *(["--tsv"] if request.param else [])]) == 0
    return out


@pytest.mark.parametrize("task, name, split", BUILT)
def test_samples_are_those_of_the_released_files(built, originals, vocab, task, name, split):
    path = data_file(built, name)
    released = samples(task, originals / "released" / path.parent.name / f"{name}.tsv", vocab, split)
    assert_same(samples(task, path, vocab, split), released)
    assert len(released) == (6 if split == "train" else 4)


def test_nothing_else_is_left(built):
    ending = data_file(built, "caption_val").suffix
    names = {str(path.relative_to(built)) for path in built.rglob("*") if path.is_file() and path.suffix != ".ofaidx"}
    files = ["caption_data/caption_stage2_train", "refcoco_data/refcoco_testA", "caption_data/caption_stage1_train"]
    files += ["caption_data/caption_val", "caption_data/caption_test", "vqa_data/vqa_train", "vqa_data/vqa_val"]
    files += ["refcoco_data/refcoco_train", "refcoco_data/refcoco_val"]
    beside = {
        "caption_data/cider_cached_tokens/coco-train-words.p", "caption_data/cider_cached_tokens/coco-valid-words.p",
        "caption_data/test_caption_coco_format.json", "vqa_data/trainval_ans2label.pkl",
    }  # fmt: skip
    assert names == {f"{name}{ending}" for name in files} | beside


def test_ids_and_candidates(built, originals):
    """Captions to evaluate have the image's id, questions their own; columns are the released ones."""
    val = data_file(built, "caption_val")
    released = TsvFile(originals / "released/caption_data/caption_val.tsv")
    vqa = TsvFile(originals / "released/vqa_data/vqa_val.tsv", "0,1,2,3")
    if val.suffix == ".jsonl":
        assert [row["id"] for row in rows_of(val)] == [row[1] for row in released]
        assert [row["id"] for row in rows_of(built / "vqa_data/vqa_val.jsonl")] == [row[0] for row in vqa]
        assert all(Path(row["image"]).is_absolute() and Path(row["image"]).is_file() for row in rows_of(val))
    else:
        assert [row[1] for row in columns_of(val)] == [row[1] for row in released]
        assert [row[4] for row in columns_of(val)] == [row[4] for row in released]  # the same base64
        assert [tuple(row[:4]) for row in columns_of(built / "vqa_data/vqa_val.tsv")] == list(vqa)
    config = TASKS["vqa_gen"].config()
    config.ans2label_file = str(built / "vqa_data/trainval_ans2label.pkl")
    train = TsvFile(originals / "released/vqa_data/vqa_train.tsv", "3")
    assert {f"1.0|!+{answer}" for answer in read_answers(config)} == {row[0] for row in train}


def test_references_and_document_frequencies(built, originals, capsys):
    """The file of references scores answers; the tables are those of the reward and of validation."""
    rows = list(TsvFile(originals / "released/caption_data/caption_test.tsv", "1,2"))
    predicted = save(built / "predict.json", [{"image_id": int(name), "caption": text} for name, text in rows])
    assert coco_scores([str(predicted), str(built / "caption_data/test_caption_coco_format.json")]) in (0, None)
    folder = built / "caption_data/cider_cached_tokens"
    assert CiderD.from_pickle(folder / "coco-valid-words.p")
    predicted.unlink()
    with open(folder / "coco-train-words.p", "rb") as file:
        table = load_plain_pickle(file)
    assert table["ref_len"] == 6 and table["document_frequency"][("<eos>",)] == 6
    captions = [
        reward_text(text) for (text,) in TsvFile(originals / "released/caption_data/caption_stage1_train.tsv", "2")
    ]
    word = captions[0].split()[0]
    assert table["document_frequency"][(word,)] == sum(word in caption.split() for caption in captions)
    with open(folder / "coco-valid-words.p", "rb") as file:
        assert ("<eos>",) not in load_plain_pickle(file)["document_frequency"]


def run(folder: Path, task: str, *words: str, out: str = "out", code: int = 0, split: str = "val") -> Any:
    """Builds in a folder; the rows of a split as JSON lines or, if it is to fail, nothing."""
    argv = [task, f"--output={folder / out}", *words]
    assert main([str(folder / word[1:]) if word.startswith("@") else word for word in argv]) == code
    if code:
        return None
    layout = LAYOUTS[task]
    path = folder / out / layout.folder / f"{layout.files[split]}.jsonl"
    return rows_of(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 1 to 4 of COCO's and Flickr30k's names."""
    for number in range(1, 5):
        for path in (f"val2014/{COCO.format('val', number)}", f"flickr/36{number}.jpg"):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / path)
    return tmp_path


def karpathy(number: int, split: str, *texts: str) -> dict[str, Any]:
    sentences = [{"tokens": text.split(), "raw": text, "imgid": number, "sentid": 10 * number + n}
                 for n, text in enumerate(texts)]  # fmt: skip
    name = {"filepath": "val2014", "filename": COCO.format("val", number), "cocoid": number, "imgid": 900 + number}
    return {"sentids": [said["sentid"] for said in sentences], "split": split, "sentences": sentences, **name}


@pytest.mark.parametrize("images", ["@.", "@val2014"])
def test_karpathys_split_file(folder, images):
    said = ("A Cat sits.", "two && dogs")
    splits = ("train", "restval", "val", "test")
    content = {"images": [karpathy(n, split, *said) for n, split in enumerate(splits, 1)], "dataset": "coco"}
    save(folder / "dataset_coco.json", content)
    val = run(folder, "caption", "--images", images, "--annotations", "@dataset_coco.json")
    assert [(row["id"], row["caption"]) for row in val] == [("3", "a cat sits.&&two & dogs")]
    data = folder / "out/caption_data"
    train = [(row["id"], row["caption"]) for row in rows_of(data / "caption_stage1_train.jsonl")]
    assert train == [("10", "a cat sits."), ("11", "two & dogs"), ("20", "a cat sits."), ("21", "two & dogs")]
    joined = [(row["id"], row["caption"]) for row in rows_of(data / "caption_stage2_train.jsonl")]
    assert joined == [(name, "a cat sits.&&two & dogs") for name in ("1", "2")]
    references = json.loads((data / "test_caption_coco_format.json").read_text())
    assert references["images"] == [{"id": "4"}] and len(references["annotations"]) == 2


def test_split_files_that_count_their_images_from_0(folder, capsys):
    """As those of Flickr8k and Flickr30k, which have no other ids."""
    for name, first in (("flickr8k", 1), ("flickr30k", 3)):
        images = [{**karpathy(n, "train", "a cat"), "imgid": n - first} for n in range(first, first + 2)]
        for image in images:
            del image["cocoid"]
        save(folder / f"{name}.json", {"images": [*images, {**images[0], "sentences": [], "imgid": 9}]})
    words = ["--images", "@.", "--annotations", "@flickr8k.json", "@flickr30k.json"]
    rows = run(folder, "caption", *words, split="train")
    assert [Path(row["image"]).name for row in rows] == [COCO.format("val", n) for n in (1, 2, 3, 4)]
    joined = rows_of(folder / "out/caption_data/caption_stage2_train.jsonl")
    assert [row["id"] for row in joined] == ["0", "1", "flickr30k_0", "flickr30k_1"]
    assert "Images without a caption that are left out: 2." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["val2014/9.jpg", "cats/9.jpg", "nowhere/9.jpg", "9.jpg", "9"])
def test_an_image_is_not_taken_for_another_of_its_name(name, folder, capsys):
    for place in ("cats/9.jpg", "dogs/9.jpg") if name != "cats/9.jpg" else ("cats/9.jpg",):
        (folder / place).parent.mkdir()
        Image.new("RGB", (40, 30)).save(folder / place)
    (folder / ".cache").mkdir()
    Image.new("RGB", (40, 30)).save(folder / ".cache/9.jpg")
    images = [{"id": 1, "file_name": name}]
    save(folder / "c.json", captions(images=images, annotations=captions()["annotations"][:1]))
    code = 0 if name == "cats/9.jpg" else 2
    rows = run(folder, "caption", "--images", "@.", "--val", "@c.json", code=code)
    if not code:
        assert rows[0]["image"] == str(folder / name)
    elif name == "val2014/9.jpg":  # where the folder is, and the image is not
        assert f"there is no image '{folder}/val2014/9.jpg', nor one of this name" in capsys.readouterr().err
    else:
        words = (
            f"the image {name!r} may be '{folder}/cats/9.jpg' and '{folder}/dogs/9.jpg': name a folder of images that"
        )
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, found", [("9.jpg", ""), ("dogs/9.jpg", "dogs"), ("8.jpg", "cats"), ("elsewhere/8.jpg", "cats")]
)
def test_images_of_one_name_in_several_folders_that_are_named(name, found, folder, capsys):
    for place in ("cats/9.jpg", "dogs/9.jpg", "cats/8.jpg"):
        (folder / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(folder / place)
    save(folder / "c.json", captions(images=[{"id": 1, "file_name": name}], annotations=captions()["annotations"][:1]))
    words = ["--images", "@cats", "@dogs", "--val", "@c.json"]
    rows = run(folder, "caption", *words, code=0 if found else 2)
    if found:
        assert rows[0]["image"] == str(folder / found / Path(name).name)
    else:
        assert f"the image '9.jpg' may be '{folder}/cats/9.jpg' and '{folder}/dogs/9.jpg'" in capsys.readouterr().err


def test_ids_of_images_may_be_texts_in_one_list_and_numbers_in_the_other(folder, capsys):
    said = [{"id": n, "image_id": image, "caption": f"a cat {n}"} for n, image in enumerate(("1", 1))]
    save(folder / "c.json", captions(images=captions()["images"][:1], annotations=said))
    (row,) = run(folder, "caption", "--images", "@val2014", "--val", "@c.json")
    assert row["caption"] == "a cat 0&&a cat 1" and "left out" not in capsys.readouterr().out


def test_hidden_folders_are_no_classes(folder):
    for place in ("tree/cat/a.jpg", "tree/.cache/b.jpg"):
        (folder / place).parent.mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(folder / place)
    run(folder, "image_classify", "--train", "@tree", "--val", "@tree")
    assert pickle.loads((folder / "out/imagenet_1k_data/class2label_new.pkl").read_bytes()) == {"cat": 0}


def test_images_are_found_through_links_that_may_lead_back(folder):
    (folder / "coco").mkdir()
    (folder / "coco/pictures").symlink_to(folder / "val2014")
    (folder / "val2014/back").symlink_to(folder / "coco")
    save(folder / "c.json", captions(images=captions()["images"][:1], annotations=captions()["annotations"][:1]))
    (row,) = run(folder, "caption", "--images", "@coco", "--val", "@c.json")
    assert row["image"] == str(folder / "coco/pictures" / COCO.format("val", 1))


def test_captions_of_a_test_set_may_be_missing(folder):
    save(folder / "image_info.json", {"images": [{"id": 2, "file_name": COCO.format("val", 2)}], "categories": []})
    (row,) = run(folder, "caption", "--images", "@val2014", "--test", "@image_info.json", split="test")
    assert row.keys() == {"id", "image"} and row["id"] == "2"
    assert not (folder / "out/caption_data/test_caption_coco_format.json").exists()


def write_vqa(folder: Path, *people: list[str]) -> list[str]:
    """Questions 101 ... about images 1 ..., and what people answered; the flags for both files."""
    asked = [{"question_id": 100 + n, "image_id": n, "question": "What?"} for n, _ in enumerate(people, 1)]
    answers = [{**one, "answers": [{"answer": text} for text in said]} for one, said in zip(asked, people, strict=True)]
    save(folder / "q.json", {"questions": asked})
    save(folder / "a.json", {"annotations": answers})
    return ["@a.json", "@q.json"]  # the order does not matter


def test_soft_scores_and_the_most_frequent_answers(folder, capsys):
    people = (["red"] * 6 + ["pink"] * 3 + ["rose"], ["red"] * 10, ["no"] * 9 + ["red"], ["tall"] * 10)
    files = write_vqa(folder, *people)
    words = ["--images", "@val2014", "--train", *files, "--val", *files, "--answers", "2"]
    val = run(folder, "vqa_gen", *words)
    assert [row["answers"] for row in val] == [
        "1.0|!+red&&0.9|!+pink&&0.3|!+rose", "1.0|!+red", "1.0|!+no&&0.3|!+red", "1.0|!+tall",
    ]  # fmt: skip
    assert "1 training questions have none of the 2 answers" in capsys.readouterr().out
    train = rows_of(folder / "out/vqa_data/vqa_train.jsonl")
    assert [(row["id"], row["answers"]) for row in train] == [
        ("101", "1.0|!+red"), ("102", "1.0|!+red"), ("103", "1.0|!+no"), ("103", "0.3|!+red")
    ]  # fmt: skip
    found = pickle.loads((folder / "out/vqa_data/trainval_ans2label.pkl").read_bytes())
    assert found == {"red": 0, "no": 1}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"question_id": 101}, "a.json, annotations[2]: an annotation before has the question_id 101 too"),
        ({"image_id": 1}, "a.json, annotations[2]: its image_id is 1, and 3 that of its question"),
        ({"question_id": 7}, "a.json, annotations[2]: q.json, whose answers these should be, has no question 7"),
    ],
)
def test_annotations_that_do_not_fit_their_questions(change, words, folder, capsys):
    files = write_vqa(folder, ["red"] * 10, ["no"] * 10, ["tall"] * 10)
    said = json.loads((folder / "a.json").read_text())["annotations"]
    save(folder / "a.json", {"annotations": [*said[:2], said[2] | change]})
    argv = ["--images", "@val2014", "--train", *files]
    run(folder, "vqa_gen", *argv, code=2)
    assert f"{words}; correct it or pass --skip-bad-entries." in capsys.readouterr().err
    rows = run(folder, "vqa_gen", *argv, "--skip-bad-entries", split="train")
    assert [(row["id"], row["answers"]) for row in rows] == [("101", "1.0|!+red"), ("102", "1.0|!+no")]
    assert ("left out" in capsys.readouterr().out) == ("question_id" in change)


def test_ids_may_be_texts_in_one_file_and_numbers_in_the_other(folder):
    files = write_vqa(folder, ["red"] * 10, ["no"] * 10)
    asked = json.loads((folder / "q.json").read_text())["questions"]
    save(folder / "q.json", {"questions": [{name: str(value) for name, value in one.items()} for one in asked]})
    rows = run(folder, "vqa_gen", "--images", "@val2014", "--train", *files, split="train")
    assert [row["id"] for row in rows] == ["101", "102"]


def test_answers_that_are_null(folder, capsys):
    files = write_vqa(folder, ["red"] * 10)
    said = json.loads((folder / "a.json").read_text())["annotations"][0]
    save(folder / "a.json", {"annotations": [said | {"answers": None}, said]})
    run(folder, "vqa_gen", "--images", "@val2014", "--train", *files, code=2)
    assert "a.json, annotations[0]: its answers are None, not a list; correct it" in capsys.readouterr().err


def test_questions_that_are_there_twice_or_have_no_annotation(folder, capsys):
    files = write_vqa(folder, ["red"] * 10, ["no"] * 10, ["tall"] * 10)
    said = json.loads((folder / "a.json").read_text())["annotations"]
    save(folder / "a.json", {"annotations": said[:1]})
    assert len(run(folder, "vqa_gen", "--images", "@val2014", "--train", *files, split="train")) == 1
    shown = capsys.readouterr().out
    assert f"Questions of {folder}/q.json that are left out, since {folder}/a.json has no" in shown
    assert "annotation of them: 2.\n" in shown
    save(folder / "q.json", {"questions": [*json.loads((folder / "q.json").read_text())["questions"], said[0]]})
    run(folder, "vqa_gen", "--images", "@val2014", "--train", *files, out="again", code=2)
    assert "q.json, questions[3]: a question before has the question_id 101 too" in capsys.readouterr().err


def test_questions_of_a_test_set_have_no_answers(folder, vocab):
    write_vqa(folder, ["yes"] * 10, ["no"] * 10)
    rows = run(folder, "vqa_gen", "--images", "@val2014", "--test", "@q.json", split="test")
    assert [(row["id"], "answers" in row) for row in rows] == [("101", False), ("102", False)]
    assert len(samples("vqa_gen", folder / "out/vqa_data/vqa_test.jsonl", vocab, "test")) == 2


INSTANCES: dict[str, Any] = {
    "images": [{"id": n, "file_name": COCO.format("val", n), "width": 40, "height": 30} for n in range(1, 5)],
    "categories": [{"id": 7, "name": "cat"}],
    "annotations": [
        {"id": 50, "image_id": 1, "category_id": 7, "bbox": [10, 5.5, 20, 10.25], "iscrowd": 0},
        {"id": 51, "image_id": 2, "category_id": 7, "bbox": [30, 0, 15, 30.5]},  # sticks out
    ],
}


def refs(*splits: str) -> list[dict[str, Any]]:
    said = [
        {"sent": "left cat", "raw": "Left Cat", "sent_id": 0, "tokens": ["left", "cat"]},
        {"sent": "it", "raw": "it"},
    ]
    return [
        {"ref_id": n, "ann_id": 50 + n, "image_id": 1 + n, "split": split, "sentences": said, "category_id": 7}
        for n, split in enumerate(splits)
    ]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_refs_of_a_pickle_by_split(folder, protocol):
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs("train", "testB"), protocol=protocol))
    save(folder / "instances.json", INSTANCES)
    words = ["--images", "@val2014", "--name", "refcocoplus", "--annotations", "@refs(unc).p", "@instances.json"]
    assert (
        main(["refcoco", f"--output={folder / 'out'}", *(str(folder / w[1:]) if w[0] == "@" else w for w in words)])
        == 0
    )
    data = folder / "out/refcocoplus_data"
    assert [(row["id"], row["text"], row["box"]) for row in rows_of(data / "refcocoplus_train.jsonl")] == [
        ("0_0", "left cat", "10.00,5.50,30.00,15.75"), ("0_1", "it", "10.00,5.50,30.00,15.75"),
    ]  # fmt: skip
    assert [row["box"] for row in rows_of(data / "refcocoplus_testB.jsonl")] == ["30.00,0.00,40.00,30.00"] * 2


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_pickle_is_executed(folder, capsys):
    (folder / "refs.p").write_bytes(pickle.dumps([Harmful()]))
    run(folder, "refcoco", "--images", "@val2014", "--annotations", "@refs.p", code=2)
    shown = capsys.readouterr()
    assert "refs.p is not a pickle of plain values (it refers to builtins.print)" in shown.err
    assert "executed" not in shown.out + shown.err


def test_phrases_with_boxes_need_no_instances(folder):
    save(folder / "phrases.json", [
        {"image_id": 1, "phrase": "a cat", "bbox": [1, 2, 3, 4]},
        {"id": "x", "image_id": f"val2014/{COCO.format('val', 2)}", "caption": "a dog", "bbox": [0, 0, 40, 30]},
    ])  # fmt: skip
    rows = run(folder, "refcoco", "--images", "@.", "--val", "@phrases.json")
    assert [(row["id"], row["text"], row["box"]) for row in rows] == [
        ("0_0", "a cat", "1.00,2.00,4.00,6.00"), ("x_0", "a dog", "0.00,0.00,40.00,30.00"),
    ]  # fmt: skip


def test_entailment(folder, vocab):
    entry = {"Flickr30K_ID": "361", "captionID": "361.jpg#4", "gold_label": "neutral", "pairID": "361.jpg#4r1n",
             "sentence1": "A  couple.", "sentence2": "They wait.", "annotator_labels": ["neutral"]}  # fmt: skip
    without = {key: value for key, value in entry.items() if key not in ("gold_label", "Flickr30K_ID")}
    for name, lines in {"dev": [entry, {**entry, "gold_label": "entailment"}], "test": [without]}.items():
        (folder / f"snli_ve_{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--images", "@flickr", "--val", "@snli_ve_dev.jsonl", "--test", "@snli_ve_test.jsonl"]
    rows = run(folder, "snli_ve", *words)
    assert [row["label"] for row in rows] == ["neutral", "entailment"] and rows[0] == {
        "id": "361.jpg#4r1n", "image": str(folder / "flickr/361.jpg"), "hypothesis": "They wait.",
        "caption": "A couple.", "label": "neutral",
    }  # fmt: skip
    assert run(folder, "snli_ve", *words, out="again")
    (row,) = rows_of(folder / "out/snli_ve_data/snli_ve_test.jsonl")
    assert "label" not in row
    assert len(samples("snli_ve", folder / "out/snli_ve_data/snli_ve_test.jsonl", vocab, "test")) == 1


NAMES = {
    "names.txt": "n01 tench, Tinca tinca\nn02\tgreat white\nn03 unused\n",
    "names.json": '{"n01": "tench, Tinca tinca", "n02": "great white"}',
    "index.json": '{"0": ["n01", "tench, Tinca tinca"], "1": ["n02", "great white"]}',
}


@pytest.fixture
def tree(folder: Path) -> Path:
    for split, number in (("train", 3), ("val", 2)):
        for kind in ("n01", "n02"):
            (folder / split / kind).mkdir(parents=True)
            for n in range(number):
                Image.new("RGB", (9, 9)).save(folder / split / kind / f"{n}.JPEG", format="JPEG")
    for name, text in NAMES.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("names", [None, *NAMES])
def test_a_tree_of_classes(tree, names):
    words = ["--train", "@train", "--val", "@val", *(["--class-names", f"@{names}"] if names else [])]
    rows = run(tree, "image_classify", *words)
    tench, shark = ("tench, Tinca tinca", "great white") if names else ("n01", "n02")
    assert [row["name"] for row in rows] == [tench] * 2 + [shark] * 2
    data = tree / "out/imagenet_1k_data"
    assert rows == rows_of(data / "imagenet_1k_val.jsonl") and len(rows_of(data / "imagenet_1k_train.jsonl")) == 6
    assert pickle.loads((data / "class2label_new.pkl").read_bytes()) == {tench: 0, shark: 1}
    assert main(["image_classify", f"--train={tree / 'train'}", f"--output={tree / 'tsv'}", "--tsv"]) == 0
    assert [row[1:] for row in columns_of(tree / "tsv/imagenet_1k_data/imagenet_1k_train.tsv")][2:4] == [
        ["1", "n01"], ["2", "n02"]
    ]  # fmt: skip


def test_validation_in_training_has_a_part_of_many_images(tree, monkeypatch):
    monkeypatch.setattr(program, "SUBSET", 2)
    rows = run(tree, "image_classify", "--val", "@val")
    assert [row["name"] for row in rows] == ["n01", "n02"]
    assert len(rows_of(tree / "out/imagenet_1k_data/imagenet_1k_val.jsonl")) == 4


# The official tables: header and a row; a test table's header; the row that is built.
TABLES = {
    "cola": ("", "gj04\t1\t\tOur friends", "index\tsentence", {"sentence": "Our friends", "label": "1"}),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        '0\t1\t1n\tslate\t( )\tA "dog\tb \tneutral\tcontradiction', "index\tsentence1\tsentence2",
        {"first": 'A "dog', "second": "b", "label": "2"},
    ),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t70\t71\tHe said\tShe said",
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String", {"first": "He said", "second": "She said", "label": "1"},
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel", "0\tWhen?\tIn 1.\tnot_entailment", "index\tquestion\tsentence",
        {"question": "When?", "sentence": "In 1.", "label": "not_entailment"},
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\tHow?\tWhy?\t0",
        "id\tquestion1\tquestion2", {"first": "How?", "second": "Why?", "label": "0"},
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel", "0\tA b.\tC d.\tentailment", "index\tsentence1\tsentence2",
        {"first": "A b.", "second": "C d.", "label": "entailment"},
    ),
    "sst2": ("sentence\tlabel", "hide new \t0", "index\tsentence", {"sentence": "hide new", "label": "0"}),
}  # fmt: skip


@pytest.mark.parametrize("task", TABLES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_glues_tables(task, end, tmp_path, vocab):
    header, row, test_header, expected = TABLES[task]
    (tmp_path / "train.tsv").write_text("".join(line + end for line in (header, row) if line), newline="")
    columns = test_header.lstrip("\ufeff").split("\t")
    (tmp_path / "test.tsv").write_text(f"{test_header}{end}" + "\t".join("x" for _ in columns) + end, newline="")
    words = ["--train", "@train.tsv", "--val", "@train.tsv"]
    assert run(tmp_path, task, *words, "--test", "@test.tsv") == [expected]
    test = tmp_path / f"out/glue_data/{task}_test.jsonl"
    assert all(value == "x" for row in rows_of(test) for value in row.values()) and "label" not in rows_of(test)[0]
    assert len(samples(task, test, vocab, "test")) == 1
    assert main([task, f"--train={tmp_path / 'train.tsv'}", f"--output={tmp_path / 'tsv'}", "--tsv"]) == 0
    named, released = tmp_path / f"out/glue_data/{task}_train.jsonl", tmp_path / f"tsv/glue_data/{task}_train.tsv"
    assert_same(samples(task, named, vocab, "train"), samples(task, released, vocab, "train"))


def test_parallel_texts(tmp_path, vocab):
    (tmp_path / "a.txt").write_text("australia 's  deficit\t#.## percent\nsecond one\n")
    (tmp_path / "t.txt").write_text("deficit <unk>\nup #\n")
    rows = run(tmp_path, "gigaword", "--val", "@a.txt", "@t.txt", "--test", "@a.txt")
    assert rows[0] == {"article": "australia 's deficit #.## percent", "summary": "deficit <unk>"}
    assert len(samples("gigaword", tmp_path / "out/gigaword_data/gigaword_test.jsonl", vocab, "test")) == 2


@pytest.fixture(scope="module")
def vqgan(tmp_path_factory) -> list[str]:
    folder: Path = tmp_path_factory.mktemp("vqgan")
    torch.manual_seed(0)
    config = VQGANConfig(
        ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=8, embed_dim=8, n_embed=16
    )
    model = VQGAN(config).eval()
    torch.nn.init.normal_(model.quantize.proj.weight, std=4.0)
    model.save(folder / "last.ckpt", folder / "model.yaml")
    return [f"--vqgan-model-path={folder / 'last.ckpt'}", f"--vqgan-config-path={folder / 'model.yaml'}"]


def test_codes_of_the_images_of_captions(folder, vqgan, vocab, capsys):
    said = ("A Cat", "two dogs")
    content = {"images": [karpathy(n, split, *said) for n, split in enumerate(("train", "train", "val"), 1)]}
    (folder / "val2014" / COCO.format("val", 1)).write_text("no image")
    save(folder / "dataset.json", content)
    words = ["--images", "@val2014", "--annotations", "@dataset.json", "--code-image-size", "32", *vqgan]
    run(folder, "image_gen", *words, code=2)
    assert "COCO_val2014_000000000001.jpg': the image cannot be decoded" in capsys.readouterr().err
    (row,) = run(folder, "image_gen", *words, "--skip-bad-entries")
    assert row["id"] == "30" and row["text"] == "a cat" and len(row["codes"].split()) == 16
    data = folder / "out/coco_image_gen_data"
    train = rows_of(data / "coco_vqgan_train.jsonl")
    assert [(row["id"], row["text"]) for row in train] == [("20", "a cat"), ("21", "two dogs")]
    assert {path.name for path in data.iterdir()} == {"coco_vqgan_train.jsonl", "coco_vqgan_dev.jsonl"}
    assert "1 entries were skipped" in capsys.readouterr().out


def undecodable() -> bytes:
    """An image whose head is that of a good one."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "TIFF", compression="tiff_lzw")
    return file.getvalue().replace(struct.pack("<HHIH", 259, 3, 1, 5), struct.pack("<HHIH", 259, 3, 1, 7))


def test_images_that_cannot_be_encoded_are_skipped(folder, vqgan, capfd):
    save(folder / "dataset.json", {"images": [karpathy(n, "val", "a cat", "a dog") for n in (1, 2, 3)]})
    (folder / "val2014" / COCO.format("val", 2)).write_bytes(undecodable())
    words = ["--images", "@val2014", "--annotations", "@dataset.json", "--code-image-size", "32", *vqgan]
    run(folder, "image_gen", *words, code=2)
    error = capfd.readouterr().err.splitlines()[-1]
    assert "COCO_val2014_000000000002.jpg': the image cannot be decoded" in error
    rows = run(folder, "image_gen", *words, "--skip-bad-entries")
    assert [row["id"] for row in rows] == ["10", "30"] and all(len(row["codes"].split()) == 16 for row in rows)
    assert "1 entries were skipped" in capfd.readouterr().out
    for number in (1, 3):
        (folder / "val2014" / COCO.format("val", number)).write_bytes(undecodable())
    run(folder, "image_gen", *words, "--skip-bad-entries", out="none", code=2)
    assert "None of the images of " in capfd.readouterr().err


def test_encoding_goes_on_where_it_was(folder, vqgan, monkeypatch):
    save(folder / "dataset.json", {"images": [karpathy(n, "val", "a cat") for n in (1, 2, 3)]})
    save(folder / "other.json", {"images": [karpathy(n, "val", "a cat") for n in (2, 4)]})
    words = ["--images", "@val2014", "--code-image-size", "32", *vqgan]
    encode, encoded = VQGAN.encode, []

    def dying(self, images):
        encoded.append(len(images))
        if len(encoded) == 1:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(VQGAN, "encode", dying)
    with pytest.raises(AssertionError, match="assert 130 == 0"):
        run(folder, "image_gen", *words, "--annotations", "@dataset.json")
    others = run(folder, "image_gen", *words, "--annotations", "@other.json")  # not of the images that were begun
    assert [row["id"] for row in others] == ["20", "40"]
    assert len(run(folder, "image_gen", *words, "--annotations", "@dataset.json", out="again")) == 3


def test_tabs_in_an_id_do_not_break_a_row(folder):
    save(folder / "phrases.json", [{"id": "a\tb\nc", "image_id": 1, "phrase": "a cat", "bbox": [1, 2, 3, 4]}])
    line = {"Flickr30K_ID": "361", "pairID": "a\tb", "sentence1": "a", "sentence2": "b", "gold_label": "neutral"}
    save(folder / "snli.jsonl", line)
    for task, images, name in (("refcoco", "val2014", "phrases.json"), ("snli_ve", "flickr", "snli.jsonl")):
        argv = [task, f"--images={folder / images}", f"--val={folder / name}", f"--output={folder / 'out'}", "--tsv"]
        assert main(argv) == 0
    (row,) = columns_of(folder / "out/snli_ve_data/snli_ve_dev.tsv")
    assert row[0] == "a b" and len(row) == 6
    (row,) = columns_of(folder / "out/refcoco_data/refcoco_val.tsv")
    assert row[0] == "a b c_0" and len(row) == 5


def test_old_command_lines_build_the_files_of_pretraining(capsys):
    for words in (["pretrain", "--images=nowhere"], ["--images=nowhere"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "the following arguments are required: --captions" in capsys.readouterr().err


# A task, its flags and what the sentence says; `captions.json` is each time the content given.
def captions(**changed: Any) -> dict[str, Any]:
    images = [{"id": 1, "file_name": COCO.format("val", 1)}, {"id": 2, "file_name": "a/lost.jpg"}]
    return {"images": images, "annotations": [{"id": n, "image_id": n, "caption": "a cat"} for n in (1, 2)], **changed}


WRONG = [
    (captions(), "c.json, images[1]: there is no image '{}/val2014/a/lost.jpg', nor one of this name or number below"),
    (captions(images=captions()["images"][:1] + [{"id": 2, "file_name": "http://x/2.jpg"}]),
     "images[1]: the image 'http://x/2.jpg' is a URL: download it"),
    (captions(annotations=[{"id": 1, "image_id": 99, "caption": "a cat"}]),
     "c.json, annotations[0]: there is no image '{}/val2014/99'"),
    ({"questions": [{"question_id": 1}], "info": {}},
     "is none of Karpathy's split file (images with filename, split and sentences), COCO's captions (annotations with "
     "image_id and caption), COCO's list of images (images with id and file_name): it holds an object with 'questions' "
     "(a list of 1 with 'question_id'), 'info' (a value of the type dict); name another file."),
    ([1, 2], "it holds a list of 2; name another file."),
    ("text", "it holds a value of the type str; name another file."),
    (captions(annotations={}), "with 'id', 'file_name'), 'annotations' (a value of the type dict); name another file."),
    (captions(annotations=[]), "There are no rows for {}/out/caption_data: check the files and"),
    ({"images": [karpathy(1, "dev", "a cat")]}, "c.json, images[0]: it has the split 'dev': the splits of caption are "
     "train, val, test; correct it or pass --skip-bad-entries."),
    ({"images": [karpathy(1, "test", "a cat")]}, "images[0]: it is of the split 'test', and --val names its file: "
     "name it with --annotations; correct it or pass"),
    ({"images": [karpathy(1, "val", "a cat"), karpathy(1, "val", "a dog")]},
     "images[1]: an image before has the cocoid 1 too; correct it or"),
    (captions(images=[*captions()["images"], {"id": 1, "file_name": "b.jpg"}]),
     f"images[2]: the image 1 has been '{COCO.format('val', 1)}' before; correct it or"),
]  # fmt: skip


@pytest.mark.parametrize("content, words", WRONG)
def test_mistakes_in_annotations(content, words, folder, capsys):
    save(folder / "c.json", content)
    flag = "--annotations" if "'dev'" in words or "cocoid" in words else "--val"
    run(folder, "caption", "--images", "@val2014", flag, "@c.json", code=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("python -m data.build: error: ") and words.format(folder) in error
    assert not list(folder.glob("out/*/*"))


def test_bad_entries_are_skipped_and_counted(folder, capsys):
    save(folder / "c.json", captions())
    Image.new("RGB", (9, 9)).save(folder / "val2014/ok.png")
    (folder / "val2014/bad.jpg").write_bytes(b"no image")
    save(folder / "d.json", captions(images=[{"id": 1, "file_name": "ok.png"}, {"id": 2, "file_name": "bad.jpg"}]))
    words = ["--images", "@val2014", "--val", "@c.json", "--test", "@d.json"]
    assert [row["id"] for row in run(folder, "caption", *words, "--skip-bad-entries")] == ["1"]
    assert [row["id"] for row in rows_of(folder / "out/caption_data/caption_test.jsonl")] == ["1"]
    shown = capsys.readouterr()
    assert "2 entries were skipped." in shown.out
    assert "skipped" in shown.out + shown.err and "bad.jpg" in shown.out + shown.err
    run(folder, "caption", *words, out="again", code=2)
    assert "c.json, images[1]: " in capsys.readouterr().err


def test_what_is_skipped_counts_nowhere(folder, capsys):
    """Neither in references and document frequencies nor among the answers to choose among."""
    (folder / "val2014" / COCO.format("val", 2)).write_bytes(b"no image")
    images = [{"id": n, "file_name": COCO.format("val", n)} for n in (1, 2, 3)]
    said = [{"id": n, "image_id": n, "caption": text} for n, text in ((1, "a cat"), (2, "a dog"), (3, "!!"))]
    save(folder / "c.json", {"images": images, "annotations": said})
    splits = [word for split in ("train", "val", "test") for word in (f"--{split}", "@c.json")]
    rows = run(folder, "caption", "--images", "@val2014", *splits, "--skip-bad-entries", split="test")
    data = folder / "out/caption_data"
    assert [row["id"] for row in rows] == ["1"]
    references = json.loads((data / "test_caption_coco_format.json").read_text())
    assert references["images"] == [{"id": "1"}] and [said["caption"] for said in references["annotations"]] == [
        "a cat"
    ]
    for split in ("train", "valid"):
        with open(data / f"cider_cached_tokens/coco-{split}-words.p", "rb") as file:
            table = load_plain_pickle(file)
        assert ("cat",) in table["document_frequency"] and ("dog",) not in table["document_frequency"]
        assert table["ref_len"] == pytest.approx(1)
    assert "6 entries were skipped." in capsys.readouterr().out  # an image and a caption in each file

    files = write_vqa(folder, ["one"] * 10, ["two"] * 10, ["three"] * 10)
    words = ["--images", "@val2014", "--train", *files, "--skip-bad-entries"]
    assert [row["id"] for row in run(folder, "vqa_gen", *words, split="train")] == ["101", "103"]
    found = pickle.loads((folder / "out/vqa_data/trainval_ans2label.pkl").read_bytes())
    assert found == {"one": 0, "three": 1} and "1 entries were skipped." in capsys.readouterr().out


REFUSED = [
    ("caption", ["--images", "@nowhere", "--val", "@c.json"], "There is no folder {}/nowhere: --images names"),
    ("caption", ["--images", "@val2014"], "name files with --train, --val or --test"),
    ("caption", ["--images", "@val2014", "--val", "@lost.json"], "lost.json cannot be read"),
    ("caption", ["--images", "@val2014", "--val", "@c.json", "--annotations", "@c.json"], "leave --train, --val and"),
    ("caption", ["--images", "@val2014", "--annotations", "@one.json"], "names no splits: pass it with --train, --val"),
    ("caption", ["--images", "@val2014", "--val", "@c.json", "@c.json"], "--val names {}/c.json twice: leave one out."),
    ("vqa_gen", ["--images", "@val2014", "--train", "@q.json"], "--train has 1 files of questions and 0 of"),
    ("image_classify", ["--train", "@nowhere"], "There is no folder {}/nowhere: --train names a folder with a folder"),
    ("image_classify", ["--train", "@flickr"], "{}/flickr has no folders: --train names a folder with"),
    ("image_classify", ["--train", "@tree", "--val", "@more"], "is the folder of a class that --train does not have"),
    ("image_classify", ["--train", "@tree", "--class-names", "@one.txt"], "has no name for the class folder 'b'"),
    ("image_classify", ["--train", "@tree", "--class-names", "@twice.txt"], "has the name 'crane' for a, b: give"),
    ("cola", ["--train", "@a.txt"], "a.txt is not GLUE's table of cola: no column 'sentence' is among"),
    ("sst2", ["--train", "@sst.tsv"], "sst.tsv, line 2: the label '7' is not one of 0, 1; correct it or pass --skip"),
    ("rte", ["--val", "@short.tsv"], "short.tsv, line 2: the row has 2 columns, the first line 4; correct it"),
    ("gigaword", ["--train", "@a.txt", "@b.txt"], "a.txt has 2 lines and {}/b.txt 1: a summary must be on the line of"),
    ("gigaword", ["--train", "@a.txt"], "--train has 1 files: name the articles and their summaries."),
    ("snli_ve", ["--images", "@flickr", "--val", "@a.txt"], "a.txt, line 1: it is not a JSON object; correct it or"),
    ("snli_ve", ["--images", "@flickr", "--val", "@lost.jsonl"], "lost.jsonl, line 1: there is no image '{}/flickr/9'"),
    ("refcoco", ["--images", "@val2014", "--val", "@boxes.json"], "annotations[0]: the bbox (35.0, 40.0, 9.0, 9.0)"),
    ("refcoco", ["--images", "@val2014", "--val", "@refs.json"], "refs.json names instances by their ann_id: pass"),
    ("refcoco", ["--images", "@val2014", "--val", "@refs.json", "@crowd.json"], "[0]: the instance 5 is a crowd, wh"),
    ("refcoco", ["--images", "@val2014", "--val", "@other.json", "@crowd.json"], "[0]: its image_id is 2, and 1 that"),
    ("snli_ve", ["--images", "@flickr", "--val", "@null.jsonl"], "line 1: its sentence1 is None, not a text"),
    ("refcoco", ["--images", "@val2014", "--val", "@mute.json"], "mute.json, annotations[0]: it has no sentences;"),
    ("refcoco", ["--images", "@val2014", "--val", "@test.json"], "of the split 'testB', and --val names its file:"),
    ("caption", ["--images", "@val2014", "--val", "@float.json"], "the image has floating point numbers as pixels"),
    ("gigaword", ["--train", "@a.txt", "@blank.txt"], "a.txt, line 2: the summary has no words, in {}/blank.txt;"),
]  # fmt: skip


@pytest.mark.parametrize("task, words, message", REFUSED)
def test_mistakes_are_named(task, words, message, folder, capsys):
    save(folder / "c.json", captions())
    save(folder / "q.json", {"questions": []})
    save(folder / "one.json", captions(images=captions()["images"][:1], annotations=captions()["annotations"][:1]))
    save(folder / "boxes.json", [{"image_id": 1, "phrase": "a cat", "bbox": [35, 40, 9, 9]}])
    box = {"image_id": 1, "id": 5, "bbox": [1, 1, 9, 9], "category_id": 1}
    instances = [box | {"iscrowd": 1}, box | {"id": 6}]
    save(folder / "crowd.json", {"categories": [{"id": 1, "name": "cat"}], "annotations": instances})
    save(folder / "refs.json", [{"image_id": 1, "ann_id": 5, "sentences": ["a cat"]}])
    save(folder / "other.json", [{"image_id": 2, "ann_id": 6, "sentences": ["a cat"]}])
    (folder / "null.jsonl").write_text('{"Flickr30K_ID": 361, "sentence1": null, "sentence2": "b"}\n')
    save(folder / "mute.json", [{"image_id": 1, "bbox": [1, 1, 9, 9], "sentences": []}])
    save(folder / "test.json", [{"image_id": 1, "bbox": [1, 1, 9, 9], "phrase": "a cat", "split": "testB"}])
    Image.new("F", (40, 30)).save(folder / "val2014/float.tiff")
    floats = [{"id": 1, "file_name": "float.tiff"}]
    save(folder / "float.json", captions(images=floats, annotations=captions()["annotations"][:1]))
    for name in ("tree/a", "tree/b", "more/c"):
        (folder / name).mkdir(parents=True)
    for name, text in {
        "a.txt": "one\ntwo\n", "blank.txt": "one\n\n",
        "b.txt": "one\n", "one.txt": "a cat\n", "twice.txt": "a crane\nb crane\n",
        "sst.tsv": "sentence\tlabel\nfine\t7\n", "short.tsv": "index\tsentence1\tsentence2\tlabel\n0\tone\n",
        "lost.jsonl": '{"Flickr30K_ID": 9, "sentence1": "a", "sentence2": "b"}\n',
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    run(folder, task, *words, code=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.format(folder) in error and error[-1] == "."


def test_an_interrupted_build_goes_on_where_it_was(folder, monkeypatch, capsys):
    save(folder / "d.json", {"images": [karpathy(n, "train", f"cat {n}") for n in range(1, 5)]})
    words = ["--images", "@val2014", "--annotations", "@d.json", "--skip-bad-entries", "--workers=1"]
    line, loaded = manifests.DataFile.line, []

    def dying(self: manifests.DataFile, entry: manifests.Entry) -> bytes:
        assert entry.image is not None
        loaded.append(int(entry.image.stem[-1]))
        if len(loaded) == 3:
            raise KeyboardInterrupt
        if entry.image.stem.endswith("2"):
            raise ValueError("it is bad")
        return line(self, entry)

    monkeypatch.setattr(manifests, "BATCH", 1)
    monkeypatch.setattr(manifests.DataFile, "line", dying)
    with pytest.raises(AssertionError, match="assert 130 == 0"):
        run(folder, "caption", *words)
    data = folder / "out/caption_data"
    (part,) = data.iterdir()
    assert part.name.startswith("caption_stage1_train.jsonl.") and part.suffix == ".part"
    with open(part, "ab") as file:
        file.write(b'{"id": "torn')
    assert [row["id"] for row in run(folder, "caption", *words, split="train")] == ["10", "30", "40"]
    assert loaded == [1, 2, 3, 3, 4, 1, 2, 3, 4]  # the second file has the same images
    assert [row["caption"] for row in rows_of(data / "caption_stage2_train.jsonl")] == ["cat 1", "cat 3", "cat 4"]
    assert not list(data.glob("*.part")) and "2 entries were skipped" in capsys.readouterr().out
    run(folder, "caption", *words, code=2)
    assert "exists already: delete it or choose another --output." in capsys.readouterr().err


@pytest.mark.parametrize("moment", [0, 3, 4, 6, 8])
def test_a_build_that_is_stopped_at_its_end_goes_on(folder, monkeypatch, moment, capsys):
    """Between two files, or between them and those beside them: what is there is its own, and not another command's."""
    entries = [karpathy(n, "train" if n < 3 else "val", f"a red cat {n}") for n in range(1, 5)]
    save(folder / "d.json", {"images": entries})
    save(folder / "other.json", {"images": entries[1:]})
    words = ["--images", "@val2014", "--workers=1", "--annotations"]
    calls = []

    def stopping(function):
        def called(*args, **options):
            if len(calls) == moment:
                raise KeyboardInterrupt
            calls.append(function)
            return function(*args, **options)

        return called

    data = folder / "out/caption_data"
    with monkeypatch.context() as patch:
        patch.setattr(manifests.os, "replace", stopping(os.replace))
        with contextlib.suppress(AssertionError):
            run(folder, "caption", *words, "@d.json")
    stopped = moment < 8
    if stopped and (data / "caption_stage1_train.jsonl").exists():
        run(folder, "caption", *words, "@other.json", code=2)
        assert "exists already: delete it" in capsys.readouterr().err
    rows = run(folder, "caption", *words, "@d.json", split="train", code=0 if stopped else 2)
    assert not stopped or len(rows) == 2
    assert len(list(data.rglob("*"))) == 6 and not list(data.glob("*.done")) and not list(data.glob("*.part"))
    assert [row["id"] for row in rows_of(data / "caption_val.jsonl")] == ["3", "4"]


def test_a_part_of_other_annotations_is_not_continued(folder, monkeypatch):
    for name, text in (("one.json", "a cat"), ("two.json", "a dog")):
        save(folder / name, {"images": [karpathy(n, "val", text) for n in (1, 2)]})
    words = ["--images", "@val2014", "--annotations"]
    (folder / "val2014" / COCO.format("val", 2)).rename(folder / "kept")
    (folder / "val2014" / COCO.format("val", 2)).write_bytes(b"")
    monkeypatch.setattr(manifests, "BATCH", 1)
    run(folder, "caption", *words, "@one.json", code=2)
    assert len(list(folder.glob("out/caption_data/*.part"))) == 1
    (folder / "kept").rename(folder / "val2014" / COCO.format("val", 2))
    assert [row["caption"] for row in run(folder, "caption", *words, "@two.json")] == ["a dog"] * 2
    assert not list(folder.glob("out/caption_data/*.part"))


@pytest.mark.parametrize("task, script", [(task, layout.script) for task, layout in LAYOUTS.items()])
def test_the_script_that_trains_is_there(task, script):
    assert (ROOT / "run_scripts" / script).is_file()


def test_the_command_is_printed_where_there_is_something_to_train_with(folder, capsys):
    save(folder / "c.json", captions(images=captions()["images"][:1], annotations=captions()["annotations"][:1]))
    words = ["--images", "@val2014", "--train", "@c.json"]
    run(folder, "caption", *words, split="train")
    assert "Train with" not in capsys.readouterr().out
    run(folder, "caption", *words, "--val", "@c.json", out="my data")
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    data = f"{folder}/my data/caption_data"
    files = f"DATA_FILES={data}/caption_stage1_train.jsonl,{data}/caption_val.jsonl"
    script = f"{ROOT}/run_scripts/caption/train_caption_stage1.sh"
    assert command == [f"DATA_DIR={folder}/my data", files, "bash", script]
