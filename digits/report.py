"""Images and a score table of a captioning run on the demo data: python -m digits.report OUT_DIR."""

import json
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from data.images import decode_base64, decode_image
from data.tsv import TsvFile
from digits.caption import MORE_DIGITS
from utils.errors import UserError
from utils.files import read_text, text_lines

SUBSETS = {"blank": "exact, digits removed"} | {name: f"exact, {count} digits" for count, name in MORE_DIGITS.items()}
COLUMNS, ROWS = 8, 5  # images of the contact sheet


def read_captions(predictions: Path) -> dict[str, str]:
    """Caption of each image id in a file of predictions."""
    records = json.loads(read_text(predictions))
    return {str(record["image_id"]): record["caption"] for record in records}


def exact_share(captions: dict[str, str], test: TsvFile) -> float:
    """Share of the test images (columns image id, caption, image) whose caption is exactly the reference."""
    return sum(captions[test[i][0]] == test[i][1] for i in range(len(test))) / len(test)


def read_curves(log: Path) -> dict[str, list[tuple[int, float]]]:
    """(updates, value) points of the training loss and the validation CIDEr from a training log."""
    curves: dict[str, list[tuple[int, float]]] = {"loss": [], "cider": []}
    for line in text_lines(read_text(log)):
        if found := re.search(r"loss=([\d.]+),.*num_updates=(\d+)", line):
            curves["loss"].append((int(found[2]), float(found[1])))
        elif found := re.search(r"\| cider ([\d.]+) \|.*num_updates (\d+)", line):
            curves["cider"].append((int(found[2]), float(found[1])))
    return curves


def draw_curves(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Training loss and validation CIDEr over updates."""
    figure, axis = plt.subplots(figsize=(7, 4))
    axis.plot(*zip(*curves["loss"], strict=True), color="tab:blue")
    axis.set(xlabel="updates", ylabel="training loss (nats per token)", yscale="log")
    right = axis.twinx()
    if curves["cider"]:
        right.plot(*zip(*curves["cider"], strict=True), color="tab:orange", marker="o")
    right.set_ylabel("validation CIDEr-D (10 = identical)", color="tab:orange")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_contact_sheet(captions: dict[str, str], test: TsvFile, path: Path) -> None:
    """The first test images with their captions: green is exactly the reference, red is not."""
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(2.1 * COLUMNS, 2.8 * ROWS))
    for axis in axes.flat:
        axis.axis("off")
    for i, axis in zip(range(len(test)), axes.flat, strict=False):
        image_id, reference, image = test[i]
        caption = captions[image_id]
        axis.imshow(decode_image(decode_base64(image)))
        right = caption == reference
        text = caption.replace(" at ", "\nat ") if right else f"{caption}\n({reference})".replace(" at ", "\nat ")
        axis.set_title(text, fontsize=8, color="green" if right else "red")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv: list[str]) -> int:
    """Draws the images, writes scores.md and says where everything is."""
    try:
        (out,) = (Path(arg) for arg in argv)
        captions = read_captions(out / "caption" / "test_predict.json")
        data = out / "data" / "caption_data"
        test = TsvFile(data / "caption_test.tsv", "1,2,4")
        shares = {"exact captions": exact_share(captions, test)}
        for subset, name in SUBSETS.items():
            rows = TsvFile(data / f"caption_{subset}.tsv", "1,2,4")
            shares[name] = exact_share(read_captions(out / "caption" / f"{subset}_predict.json"), rows)
        scores = json.loads(read_text(out / "caption" / "test_scores.json"))
        log = max((out / "stage1_logs").glob("*.log"), key=lambda path: path.stat().st_mtime)
        draw_curves(read_curves(log), out / "training_curve.png")
        draw_contact_sheet(captions, test, out / "contact_sheet.png")
    except (OSError, ValueError, UserError) as error:
        print(f"python -m digits.report: error: {error}", file=sys.stderr)
        return 2
    table = {**shares, **scores}
    lines = [f"| {name} | {value:.4f} |" for name, value in table.items()]
    text = "\n".join([f"| score on {len(test)} test images | value |", "| --- | --- |", *lines])
    (out / "scores.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    for name in ("caption/test_predict.json", "scores.md", "training_curve.png", "contact_sheet.png"):
        print(out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
