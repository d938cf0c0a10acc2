"""The reader of digit scenes: right on true scenes, at chance without them, wherever the digit is."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from digits.handwriting import load_digit_samples
from digits.legibility import Legibility, legibility, read_spec
from digits.scene import Scene, random_scene, render

SIZE = 64


def scenes(count: int, digits: int = 1, split: str = "test", size: int = SIZE) -> list[Scene]:
    rng = np.random.default_rng(5)
    return [random_scene(load_digit_samples(split), rng, size, digits) for _ in range(count)]


def test_true_scenes_of_unseen_handwriting_are_read() -> None:
    made = scenes(200)
    found = legibility([render(scene) for scene in made], [scene.specs[0] for scene in made])
    assert found.digit > 0.93 and found.colour > 0.99 and found.position > 0.99


def test_things_of_other_scenes_are_read_at_chance() -> None:
    made = scenes(300)
    found = legibility([render(scene) for scene in made], [scene.specs[0] for scene in made[1:] + made[:1]])
    assert found == pytest.approx((1 / 10, 1 / 6, 1 / 9), abs=0.06)


def test_each_of_several_digits_is_read_in_its_box() -> None:
    pairs = [
        (read_spec(image, item.box), item.spec)
        for scene in scenes(20, digits=3)
        for image in [render(scene)]
        for item in scene.objects
    ]
    assert sum(seen == spec for seen, spec in pairs) > 0.9 * len(pairs)


def test_an_empty_canvas_shows_nothing() -> None:
    (scene,) = scenes(1)
    blank = render(replace(scene, objects=()))
    assert read_spec(blank) is None
    assert legibility([blank], scene.specs) == Legibility(0.0, 0.0, 0.0)


def test_a_speck_does_not_hide_the_digit() -> None:
    scene = next(scene for scene in scenes(30) if scene.specs[0].position == "center")
    image = render(scene)
    image.paste((255, 255, 255), (1, 1, 3, 3))
    assert read_spec(image) == read_spec(render(scene))


def test_a_digit_over_the_edge_is_read() -> None:
    scene = next(scene for scene in scenes(30) if scene.specs[0].position == "top left")
    box = scene.objects[0].box
    cut = Image.new("RGB", (SIZE, SIZE))
    cut.paste(render(scene), (-box.left, -box.top))
    seen = read_spec(cut)
    assert seen is not None and seen.position == "top left" and seen.colour == scene.specs[0].colour


def test_images_and_things_must_match() -> None:
    (scene,) = scenes(1)
    with pytest.raises(ValueError, match="longer|shorter"):
        legibility([render(scene)], [])
    with pytest.raises(ValueError, match="no image"):
        legibility([], [])
