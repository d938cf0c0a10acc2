"""Text-to-image demo: true images are legible, blank ones are not, and the sheet shows them."""

import json
from pathlib import Path

from PIL import Image

from digits import image_gen
from digits.image_gen import IMAGE_GEN, SIZE, check, main
from digits.scene import Scene, render


def drawn(count: int) -> list[tuple[str, Image.Image]]:
    rows = [IMAGE_GEN.row(2, number, 1, 48) for number in range(count)]
    return [(str(row[3]), render(row[2])) for row in rows if isinstance(row[2], Scene)]


def test_true_images_are_legible_and_blank_ones_are_not() -> None:
    images = drawn(40)
    found, blank = check(images), check([(prompt, Image.new("RGB", (SIZE, SIZE))) for prompt, _ in images])
    assert found.digit > 0.9 and found.colour > 0.95
    assert blank.digit == blank.colour == 0


def test_an_evaluation_is_scored_and_drawn(tmp_path: Path) -> None:
    records = []
    for number, (prompt, image) in enumerate(drawn(12)):
        image.save(tmp_path / f"{number}.png")
        records.append({"sample_id": str(number), "caption": prompt, "image": f"{number}.png"})
    (tmp_path / "test_predict.json").write_text(json.dumps(records))
    assert main([str(tmp_path), str(tmp_path / "sheet.png")]) == 0
    assert json.loads((tmp_path / "test_scores.json").read_text())["colour"] > 0.9
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 2 * image_gen.COLUMNS * (SIZE + 4)
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "sheet.png")]) == 2
