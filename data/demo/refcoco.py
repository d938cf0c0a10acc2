"""Grounding data: a phrase that fits exactly one digit of the scene, and its box."""

from data.demo.rows import DemoTask, Lot, Row

COUNTS = (1, 2, 2, 3, 3, 3)  # digits of a scene; a single one is found without reading
PHRASES = ("the {colour} {digit}", "the {digit}", "the {colour} digit", "the digit at the {position}")


def refcoco_row(lot: Lot) -> Row:
    """Number, image id, phrase, box `x0,y0,x1,y1` in pixels, picture."""
    template = PHRASES[lot.number % len(PHRASES)]
    scene, item = lot.scene_with_referent(lot.choose(COUNTS), template)
    box = ",".join(f"{edge:.2f}" for edge in item.box)
    return str(lot.number), str(lot.id), item.thing.fill(template), box, scene


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
