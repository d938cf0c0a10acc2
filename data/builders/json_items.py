"""JSON files as inputs of `predict.py`: COCO's images, VQA's questions, arrays of objects."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.builders.coco_annotations import read_json
from data.builders.manifests import ImageFolders
from data.items import Item, Source, check_values, object_items
from utils.errors import UserError, quoted

# List of a file -> what its entries call an item's id, its image and its texts. COCO's annotations are not looked at.
LAYOUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "questions": {"id": ("question_id",), "image": ("file_name", "image", "image_id"), "question": ("question",)},
    "images": {"id": ("id",), "image": ("file_name",)},
}


def open_json(path: str, names: Sequence[str], columns: Mapping[str, str], image_root: str | None) -> Source:
    """The items of a JSON file.

    Args:
        names: the names of what an item has. columns: name -> key in the objects of an array, where they differ.
        image_root: folder with the images, also in folders below; None = the one of the file.

    Raises:
        UserError: a file that cannot be read or has another layout, or a folder that is not there.
    """
    content, root = read_json(Path(path)), Path(path).parent if image_root is None else Path(image_root)
    if isinstance(content, list) and content:
        return Source(len(content), lambda numbers, *_: object_items(path, content, names, columns, root, numbers))
    there = [
        key for key in LAYOUTS if isinstance(content, dict) and isinstance(content.get(key), list) and content[key]
    ]
    if not there or "image" not in names:
        expected = "an array of objects" + (", COCO's 'images' or VQA's 'questions'" if "image" in names else "")
        found = f"the keys {quoted(list(content))}" if isinstance(content, dict) else quoted(content)
        raise UserError(
            f"{path} has none of the layouts that are read: {expected} are expected, and there are {found}."
        )
    if not root.is_dir():
        raise UserError(f"There is no folder {root}: --image-root names the one of the images.")
    entries = content[there[0]]
    images = ImageFolders([root])
    has = [name for name in names if name in LAYOUTS[there[0]]]
    return Source(len(entries), lambda numbers, *_: _entries(path, there[0], entries, names, images, numbers), has=has)


def _entries(
    path: str, key: str, entries: list[Any], names: Sequence[str], images: ImageFolders, numbers: range
) -> Iterator[Item]:
    for number in numbers:
        entry, item = entries[number], Item(f"{path}, {key}[{number}]")
        try:
            if not isinstance(entry, dict):
                raise ValueError("it is not a JSON object")
            found = {
                name: next((entry[field] for field in fields if entry.get(field) is not None), None)
                for name, fields in LAYOUTS[key].items()
            }
            item.id = found.pop("id")
            if item.id is None:
                raise ValueError(f"it has no {LAYOUTS[key]['id'][0]!r}")
            if found["image"] is None:
                raise ValueError(f"it names no image ({' or '.join(LAYOUTS[key]['image'])})")
            found["image"] = str(images.find(found["image"]))
            item.values = {name: value for name, value in found.items() if name in names and value is not None}
        except ValueError as error:
            item.problem = str(error)
        check_values(item)
        yield item
