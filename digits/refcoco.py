"""Grounding data: a phrase that fits exactly one digit of the scene, and its box."""

from digits.rows import DemoTask, Row, RowContext
from digits.scene import Scene, SceneObject
from digits.words import relation

COUNTS = (1, 2, 2, 3, 3, 3)  # digits of a scene; a single one is found without reading
PHRASES = ("the {colour} {digit}", "the {digit}", "the {colour} digit", "the digit at the {position}")


def refcoco_row(context: RowContext) -> Row:
    """Number, image id, phrase, box `x0,y0,x1,y1` in pixels, image; every fifth phrase is a relation."""
    number = context.number % (len(PHRASES) + 1)
    if number < len(PHRASES):
        scene, item = context.scene_with_referent(context.choose(COUNTS), PHRASES[number])
        phrase = item.spec.fill(PHRASES[number])
    else:
        scene, item, phrase = _related(context, context.choose(COUNTS[1:]))
    box = ",".join(f"{edge:.2f}" for edge in item.box)
    return str(context.number), str(context.id), phrase, box, scene


def _related(context: RowContext, count: int) -> tuple[Scene, SceneObject, str]:
    """A scene, a digit in it, and a phrase that places this digit and no other beside a second one."""
    while True:
        scene = context.scene_of_names(count)
        item, other = (scene.objects[number] for number in context.rng.permutation(count)[:2])
        said = relation(item.spec, other.spec)
        fitting = [x for x in scene.objects if x is not other and relation(x.spec, other.spec) == said]
        if fitting == [item]:
            return scene, item, f"the digit {said} the {other.spec.name}"


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
