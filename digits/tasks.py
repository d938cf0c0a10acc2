"""The demo data of every task."""

from digits.caption import CAPTION, FIRST_CAPTIONS
from digits.gigaword import GIGAWORD
from digits.glue import GLUE_TASKS
from digits.image_classify import IMAGE_CLASSIFY
from digits.image_gen import IMAGE_GEN
from digits.pretrain import PRETRAIN
from digits.refcoco import REFCOCO
from digits.rows import DemoTask
from digits.snli_ve import SNLI_VE
from digits.vqa_gen import VQA_GEN

TASKS: dict[str, DemoTask] = {
    "caption": CAPTION,
    "first_captions": FIRST_CAPTIONS,
    "vqa_gen": VQA_GEN,
    "refcoco": REFCOCO,
    "snli_ve": SNLI_VE,
    "image_classify": IMAGE_CLASSIFY,
    "gigaword": GIGAWORD,
    **GLUE_TASKS,
    "image_gen": IMAGE_GEN,
    "pretrain": PRETRAIN,
}


def chance(task: str) -> float:
    """Score, 0 to 1, of guessing without looking at the image or at what matters in the text.

    Exact captions; VQA score; boxes hit by pointing at any digit; ROUGE-L F1 of another row's summary (gigaword);
    accuracy for the rest. KeyError for an unknown task.
    """
    return TASKS[task].chance
