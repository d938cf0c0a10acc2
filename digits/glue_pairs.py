"""Rows of the GLUE tasks that compare two texts.

One thing a sentence, and one wording of premises: a small network from scratch finds out within minutes which words to
compare. With two things it takes several times as long.
"""

from digits.claims import LABELS, STATEMENTS, claim, state
from digits.rows import Lot, Row
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


def mnli_row(lot: Lot) -> Row:
    """Premise, hypothesis, label: 0 neutral, 1 entailment, 2 contradiction."""
    label = lot.number % len(LABELS)
    return *_premise_and_claim(lot, LABELS[label]), str(label)


def rte_row(lot: Lot) -> Row:
    """Number, premise, hypothesis, label; half of what is not entailed is contradicted."""
    turn, entailed = divmod(lot.number, 2)
    label = "entailment" if entailed else ("neutral", "contradiction")[turn % 2]
    return str(lot.number), *_premise_and_claim(lot, label), ENTAILS[entailed]


def _premise_and_claim(lot: Lot, label: str) -> tuple[str, str]:
    (thing,) = lot.things(1)
    untold = [position for position in VALUES["position"] if position != thing.position]
    return state([thing], STATEMENTS[0]), claim(lot, label, [thing], untold)


def mrpc_row(lot: Lot) -> Row:
    """Two differently worded sentences, label: 1 if they say the same, 0 if colour, digit or position differs."""
    same = lot.number % 2
    (thing,) = lot.things(1)
    other = thing if same else lot.alter(thing, lot.choose(list(VALUES)))
    first, second = (STATEMENTS[wording] for wording in lot.rng.permutation(len(STATEMENTS))[:2])
    return state([thing], first), state([other], second), str(same)


def qnli_row(lot: Lot) -> Row:
    """Number, question, sentence, label: whether the sentence has the answer."""
    answered = lot.number % 2
    (thing,), template = lot.things(1), lot.choose(QUESTIONS[lot.choose(list(QUESTIONS))])
    question = thing.fill(template)
    while not answered and question == thing.fill(template):
        question = lot.alter(thing, lot.choose(list(VALUES))).fill(template)
    return str(lot.number), question, state([thing], lot.choose(STATEMENTS)), ENTAILS[answered]


def qqp_row(lot: Lot) -> Row:
    """Number, two question ids, two questions, label: 0 if about another thing or another property of it."""
    turn, same = divmod(lot.number, 2)
    (thing,), kind = lot.things(1), lot.choose(list(QUESTIONS))
    first, second = (QUESTIONS[kind][wording] for wording in lot.rng.permutation(3)[:2])
    questions = [thing.fill(first), thing.fill(second)]
    if not same and turn % 2:
        questions[1] = thing.fill(lot.choose(QUESTIONS[lot.choose([each for each in QUESTIONS if each != kind])]))
    elif not same:
        while questions[1] == thing.fill(second):
            questions[1] = lot.alter(thing, lot.choose(list(VALUES))).fill(second)
    ids = (str(number) for number in (lot.number, 2 * lot.number, 2 * lot.number + 1))
    return *ids, *(lot.choose(OPENINGS) + question for question in questions), str(same)
