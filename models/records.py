"""Answers of a predictor as JSON records, for files and for other programs.

Each function takes equally long lists, options of the predictor's method, and returns a record for each item.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # programs import this before the command line is known to be right
    from models.predictor import OFAPredictor

Records = list[dict[str, Any]]
Items = Sequence[Any]


def captions(p: "OFAPredictor", images: Items, **decoding: Any) -> Records:
    """Records of `OFAPredictor.caption`."""
    return [{"caption": x.text, "score": x.score} for x in _list(p.caption(images, **decoding))]


def answers(
    p: "OFAPredictor", images: Items, questions: Items, names: Sequence[str] | None, objects: Items, **decoding: Any
) -> Records:
    """Records of `OFAPredictor.answer`; names: the candidates."""
    found = p.answer(images, questions, names, objects, **decoding)
    return [{"answer": x.text, "score": x.score} for x in _list(found)]


def boxes(p: "OFAPredictor", images: Items, phrases: Items, n_best: int, **decoding: Any) -> Records:
    """Records of `OFAPredictor.ground`."""
    found = _list(p.ground(images, phrases, n_best, **decoding))
    lists = [[best] if n_best == 1 else best for best in found]
    return [{"boxes": [[b.x0, b.y0, b.x1, b.y1] for b in some], "scores": [b.score for b in some]} for some in lists]


def entailments(p: "OFAPredictor", images: Items, hypotheses: Items, premises: Items) -> Records:
    """Records of `OFAPredictor.entail`."""
    found = p.entail(images, hypotheses, premises)
    return [{"entailment": x.text, "score": x.score} for x in _list(found)]


def labels(p: "OFAPredictor", images: Items, names: Sequence[str] | None, top_k: int) -> Records:
    """Records of `OFAPredictor.classify`."""
    ranked = _list(p.classify(images, names, top_k))
    return [{"labels": [x.text for x in some], "scores": [x.score for x in some]} for some in ranked]


def summaries(p: "OFAPredictor", texts: Items, **decoding: Any) -> Records:
    """Records of `OFAPredictor.summarise`."""
    return [{"summary": x.text, "score": x.score} for x in _list(p.summarise(texts, **decoding))]


def writings(p: "OFAPredictor", images: Items, prompts: Items, **decoding: Any) -> Records:
    """Records of `OFAPredictor.generate`."""
    return [{"text": x.text, "score": x.score} for x in _list(p.generate(images, prompts, **decoding))]


def _list(results: Any) -> list[Any]:
    return results
