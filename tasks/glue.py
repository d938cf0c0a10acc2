"""Seven GLUE tasks, registered from the table in `data/glue.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import field, make_dataclass
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task

from data.glue import GLUE, GlueData
from data.tasks import TASKS
from data.text import Vocabulary
from metrics.sums import Metric, confusion, f1, mcc
from models.generation import GenerationConfig
from models.ofa import OFA
from tasks.answers import AnswerTask
from tasks.base import Evaluation
from utils.errors import UserError
from utils.predictions import Record

METRICS = {"acc": Metric(4), "F1": Metric(3, f1), "mcc": Metric(4, mcc)}
POSITIVE = "yes"  # the answer that F1 and MCC count as found


class GlueTask(AnswerTask):
    """Judges sentences with one word."""

    def __init__(self, cfg: Any, vocab: Vocabulary) -> None:
        super().__init__(cfg, vocab)
        if long := [answer for answer in self.answers if len(vocab.encode(" " + answer)) != 1]:
            raise UserError(f"--ans2label-dict: {long[0]!r} is more than one token: choose labels of a single token.")

    def evaluate(self, models: Sequence[OFA], batch: Mapping[str, Any], config: GenerationConfig) -> Evaluation:
        """One label word per row."""
        choices = self.choose(models, batch, config)
        said, true = [choice.answer for choice in choices], [next(iter(ref), "") for ref in batch["ref_dict"]]
        records: list[Record] = [{"hyp": hyp, "ref": ref} for hyp, ref in zip(said, true, strict=True)]
        scored = [(hyp, ref) for hyp, ref in zip(said, true, strict=True) if ref]
        counts = confusion([hyp == POSITIVE for hyp, _ in scored], [ref == POSITIVE for _, ref in scored])
        sums: dict[str, tuple[float, ...]] = dict.fromkeys(self.metrics, counts)
        sums["acc"] = sum(hyp == ref for hyp, ref in scored), len(scored)
        confidences = [choice.confidence for choice in choices]
        return Evaluation(records, [], sums, confidences, len(records) - len(scored))


def _register(name: str) -> None:
    row = GLUE[name]
    answers = ", ".join(f'"{word}": {number}' for number, word in enumerate(row.answers))
    words = field(default=f"{{{answers}}}", metadata={"help": "the answers, as the keys of a JSON object"})
    config = make_dataclass(
        f"{name.capitalize()}Config", [("ans2label_dict", Optional[str], words)], bases=(GlueData, FairseqDataclass)
    )
    config.__module__ = __name__
    task = type(f"{name.capitalize()}Task", (GlueTask,), {"row": TASKS[name], "__doc__": f"GLUE's {name}."})
    task.metrics = {metric: METRICS[metric] for metric in row.metrics}  # type: ignore[attr-defined]
    register_task(name, dataclass=config)(task)


for _name in GLUE:
    _register(_name)
