"""Datasets in their published form, made of digit scenes, and the released TSV files of the same rows."""

import json
from pathlib import Path
from typing import Any

from data.images import decode_base64
from data.tsv import TsvFile
from data.vqa_gen import parse_answers
from digits.__main__ import main as build_demo

COCO = "COCO_{}2014_{:012d}.jpg"
PEOPLE = 10  # who answer a question of VQA


def save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_originals(folder: Path, train: int = 6, val: int = 4, size: int = 48, more: tuple[str, ...] = ()) -> Path:
    """Below a folder: `released`, the demo data of three tasks and `more`, and in `coco` what they would be made of."""
    counts = [f"--train={train}", f"--val={val}", f"--test={val}", f"--size={size}"]
    tasks = ",".join(("caption", "vqa_gen", "refcoco", *more))
    assert build_demo([str(folder / "released"), f"--tasks={tasks}", *counts]) == 0
    for task in (_captions, _questions, _refs):
        task(folder / "released", folder / "coco")
    if "image_classify" in more:
        _classes(folder / "released", folder / "coco")
    return folder


def _image(coco: Path, task: str, split: str, number: str, column: str) -> dict[str, Any]:
    name = COCO.format(split, int(number))
    path = coco / task / f"{split}2014" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(decode_base64(column))
    return {"id": int(number), "file_name": name}


def _captions(released: Path, coco: Path) -> None:
    """COCO's captions: in mixed case, with a full stop, as people wrote them."""
    for split, name in (("train", "stage1_train"), ("val", "val"), ("test", "test")):
        rows = list(TsvFile(released / f"caption_data/caption_{name}.tsv"))
        images = [_image(coco, "caption", split, row[1], row[4]) for row in rows]
        annotations = [
            {"id": int(row[0]), "image_id": image["id"], "caption": f"{row[2].capitalize()}. "}
            for row, image in zip(rows, images, strict=True)
        ]
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
        save(coco / f"captions_{split}2014.json", content)


def _questions(released: Path, coco: Path) -> None:
    """VQA v2: questions, and the answers of ten people; no file lists the images."""
    for split in ("train", "val", "test"):
        questions: list[dict[str, Any]] = []
        annotations = []
        for name, number, question, column, _, image in TsvFile(released / f"vqa_data/vqa_{split}.tsv"):
            _image(coco, "vqa", split, number, image)
            (answer,) = parse_answers(column)
            asked = {"image_id": int(number), "question_id": int(name)}
            questions.append({**asked, "question": question})
            people = [{"answer": answer, "answer_confidence": "yes", "answer_id": n + 1} for n in range(PEOPLE)]
            annotations.append(
                {
                    "question_type": "what",
                    "multiple_choice_answer": answer,
                    "answers": people,
                    "answer_type": "other",
                    **asked,
                }
            )
        about = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": f"{split}2014"}
        task = {"task_type": "Open-Ended", "questions": questions}
        save(coco / f"v2_OpenEnded_mscoco_{split}2014_questions.json", {**about, **task})
        save(coco / f"v2_mscoco_{split}2014_annotations.json", {**about, "annotations": annotations})


def _refs(released: Path, coco: Path) -> None:
    """RefCOCO: COCO's instances, and refs with their splits."""
    refs, images, instances = [], [], []
    for split, name in (("train", "train"), ("val", "val"), ("testA", "testA")):
        for row in TsvFile(released / f"refcoco_data/refcoco_{name}.tsv"):
            image = _image(coco, "refcoco", "train", row[1], row[4])
            number = len(refs)
            x0, y0, x1, y1 = (float(edge) for edge in row[3].split(","))
            images.append(image)
            instances.append({
                "id": 700 + number, "image_id": image["id"], "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0],
                "segmentation": [[x0, y0, x1, y1]], "iscrowd": 0, "area": 1.0,
            })  # fmt: skip
            sentence = {"tokens": row[2].split(), "raw": row[2].title(), "sent": row[2], "sent_id": number}
            refs.append({
                "ref_id": number, "ann_id": 700 + number, "image_id": image["id"], "category_id": 1, "split": split,
                "file_name": image["file_name"].replace(".jpg", f"_{number}.jpg"), "sent_ids": [number],
                "sentences": [sentence],
            })  # fmt: skip
    categories = [{"id": 1, "name": "digit", "supercategory": "sign"}]
    save(coco / "instances.json", {"images": images, "annotations": instances, "categories": categories})
    save(coco / "refs.json", refs)


def _classes(released: Path, coco: Path) -> None:
    """ImageNet: a folder of images for each class."""
    for split in ("train", "val"):
        for number, (image, name) in enumerate(TsvFile(released / f"imagenet_1k_data/imagenet_1k_{split}.tsv", "0,2")):
            path = coco / "classes" / split / name / f"{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(decode_base64(image))
