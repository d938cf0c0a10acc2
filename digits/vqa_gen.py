"""Question answering data: six kinds of questions in turn, each with exactly one right answer."""

from data.vqa_gen import join_answers
from digits.rows import DemoTask, Row, RowContext
from digits.scene import Scene
from digits.words import DIGITS, OPPOSITES, VALUES, relation
from utils.constants import SEPARATOR

COUNTS = (1, 2, 3)  # digits of a scene
# what is asked of a spec that the rest of the question names
QUESTIONS = {
    "colour": "what color is the {digit}?",
    "digit": "which digit is {colour}?",
    "position": "where is the {colour} {digit}?",
}
KINDS = (*QUESTIONS, "count", "exists", "relation")
ANSWERS = ("yes", "no", *DIGITS, *VALUES["colour"], *VALUES["position"])
# A detector's view. Names or colors of the digits would answer questions without the image.
OBJECTS = ("digit", "canvas")


def vqa_row(context: RowContext) -> Row:
    """Question id, image id, question, answer with its confidence, objects, image."""
    turn, kind_number = divmod(context.number, len(KINDS))
    kind, count = KINDS[kind_number], context.choose(COUNTS)
    if kind in QUESTIONS:
        scene, item = context.scene_with_referent(count, QUESTIONS[kind])
        question, answer = item.spec.fill(QUESTIONS[kind]), getattr(item.spec, kind)
    elif kind == "relation":
        scene, answer = context.scene_of_names(context.choose(COUNTS[1:])), ("yes", "no")[turn % 2]
        first, second = (scene.specs[number] for number in context.rng.permutation(len(scene.specs))[:2])
        said = relation(first, second) if answer == "yes" else OPPOSITES[relation(first, second)]
        question = f"is the {first.name} {said} the {second.name}?"
    else:
        scene = context.scene(count)
        question, answer = "how many digits are there?", DIGITS[count]
        if kind == "exists":
            answer = ("yes", "no")[turn % 2]
            question = f"is there a {_name(context, scene, answer == 'yes')}?"
    answers = join_answers({answer: 1.0})
    return str(context.id), str(context.id), question, answers, SEPARATOR.join(OBJECTS), scene


def _name(context: RowContext, scene: Scene, present: bool) -> str:
    """Name of a digit of the scene, or one that differs from it in color or digit and is not there."""
    spec = asked = context.choose(scene.specs)
    while not present and asked.name in [other.name for other in scene.specs]:
        asked = context.alter(spec, context.choose(("colour", "digit")))
    return asked.name


# the best guess without looking, kind by kind
_GUESSES = (*(1 / len(VALUES[kind]) for kind in QUESTIONS), 1 / len(COUNTS), 1 / 2, 1 / 2)

VQA_GEN = DemoTask(
    folder="vqa_data",
    files=(("train", "vqa_train.tsv"), ("val", "vqa_val.tsv"), ("test", "vqa_test.tsv")),
    make_row=vqa_row,
    text_columns=(2,),
    chance=sum(_GUESSES) / len(KINDS),
    words=(*ANSWERS, " ".join(OBJECTS)),
    candidates=("trainval_ans2label.pkl", ANSWERS),
)
