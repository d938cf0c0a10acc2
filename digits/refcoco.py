"""Grounding data: a phrase that fits exactly one digit of the scene, and its box."""

from digits.rows import DemoTask, Lot, Row
from digits.scene import Scene, SceneObject
from digits.words import relation

COUNTS = (1, 2, 2, 3, 3, 3)  # digits of a scene; a single one is found without reading
PHRASES = ("the {colour} {digit}", "the {digit}", "the {colour} digit", "the digit at the {position}")


def refcoco_row(lot: Lot) -> Row:
    """Number, image id, phrase, box `x0,y0,x1,y1` in pixels, picture; every fifth phrase is a relation."""
    number = lot.number % (len(PHRASES) + 1)
    if number < len(PHRASES):
        scene, item = lot.scene_with_referent(lot.choose(COUNTS), PHRASES[number])
        phrase = item.thing.fill(PHRASES[number])
    else:
        scene, item, phrase = _related(lot, lot.choose(COUNTS[1:]))
    box = ",".join(f"{edge:.2f}" for edge in item.box)
    return str(lot.number), str(lot.id), phrase, box, scene


def _related(lot: Lot, count: int) -> tuple[Scene, SceneObject, str]:
    """A scene, a digit in it, and a phrase that places this digit and no other beside a second one."""
    while True:
        scene = lot.scene_of_names(count)
        item, other = (scene.objects[number] for number in lot.rng.permutation(count)[:2])
        said = relation(item.thing, other.thing)
        fitting = [x for x in scene.objects if x is not other and relation(x.thing, other.thing) == said]
        if fitting == [item]:
            return scene, item, f"the digit {said} the {other.thing.name}"


REFCOCO = DemoTask(
    folder="refcoco_data",
    files=(
        ("train", "refcoco_train.tsv"),
        ("val", "refcoco_val.tsv"),
        ("test", "refcoco_testA.tsv"),
        ("test", "refcoco_testB.tsv"),
    ),
    make_row=refcoco_row,
    text_columns=(2,),
    chance=sum(1 / count for count in COUNTS) / len(COUNTS),  # pointing at any of the digits
)
