"""Rows of the GLUE tasks that compare two texts.

One spec a sentence, and one wording of premises: a small model from scratch finds out within minutes which words to
compare. With two specs it takes several times as long.
"""

from digits.claims import LABELS, STATEMENTS, claim, state
from digits.rows import Row, RowContext
from digits.words import VALUES

ENTAILS = ("not_entailment", "entailment")
# what is asked -> wordings
QUESTIONS: dict[str, tuple[str, ...]] = {
    "colour": (
        "what color is the {digit} at the {position}?",
        "in which color is the {digit} at the {position} written?",
        "which color was used for the {digit} at the {position}?",
    ),
    "digit": (
        "which digit is written in {colour} at the {position}?",
        "what is the name of the {colour} digit at the {position}?",
        "what number is the {colour} digit at the {position}?",
    ),
    "position": (
        "where is the {colour} {digit}?",
        "at which place is the {colour} {digit}?",
        "what is the position of the {colour} {digit}?",
    ),
}
OPENINGS = ("", "tell me , ", "one more question : ")


def mnli_row(context: RowContext) -> Row:
    """Premise, hypothesis, label: 0 neutral, 1 entailment, 2 contradiction."""
    label = context.number % len(LABELS)
    return *_premise_and_claim(context, LABELS[label]), str(label)


def rte_row(context: RowContext) -> Row:
    """Number, premise, hypothesis, label; half of what is not entailed is contradicted."""
    turn, entailed = divmod(context.number, 2)
    label = "entailment" if entailed else ("neutral", "contradiction")[turn % 2]
    return str(context.number), *_premise_and_claim(context, label), ENTAILS[entailed]


def _premise_and_claim(context: RowContext, label: str) -> tuple[str, str]:
    (spec,) = context.specs(1)
    untold = [position for position in VALUES["position"] if position != spec.position]
    return state([spec], STATEMENTS[0]), claim(context, label, [spec], untold)


def mrpc_row(context: RowContext) -> Row:
    """Two differently worded sentences, label: 1 if they say the same, 0 if color, digit or position differs."""
    same = context.number % 2
    (spec,) = context.specs(1)
    other = spec if same else context.alter(spec, context.choose(list(VALUES)))
    first, second = (STATEMENTS[wording] for wording in context.rng.permutation(len(STATEMENTS))[:2])
    return state([spec], first), state([other], second), str(same)


def qnli_row(context: RowContext) -> Row:
    """Number, question, sentence, label: whether the sentence has the answer."""
    answered = context.number % 2
    (spec,), template = context.specs(1), context.choose(QUESTIONS[context.choose(list(QUESTIONS))])
    question = spec.fill(template)
    while not answered and question == spec.fill(template):
        question = context.alter(spec, context.choose(list(VALUES))).fill(template)
    return str(context.number), question, state([spec], context.choose(STATEMENTS)), ENTAILS[answered]


def qqp_row(context: RowContext) -> Row:
    """Number, two question ids, two questions, label: 0 if about another spec or another property of it."""
    turn, same = divmod(context.number, 2)
    (spec,), kind = context.specs(1), context.choose(list(QUESTIONS))
    first, second = (QUESTIONS[kind][wording] for wording in context.rng.permutation(3)[:2])
    questions = [spec.fill(first), spec.fill(second)]
    if not same and turn % 2:
        questions[1] = spec.fill(
            context.choose(QUESTIONS[context.choose([each for each in QUESTIONS if each != kind])])
        )
    elif not same:
        while questions[1] == spec.fill(second):
            questions[1] = context.alter(spec, context.choose(list(VALUES))).fill(second)
    ids = (str(number) for number in (context.number, 2 * context.number, 2 * context.number + 1))
    return *ids, *(context.choose(OPENINGS) + question for question in questions), str(same)
