"""What is known of each task, one row per task: training, validation, prediction and checkpoints read it.

Only the standard library is imported; the classes of a row are imported when they are asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from utils.servers import COCO_SERVER, VQA_SERVER, Server

if TYPE_CHECKING:
    from data.base import DataConfig, OFADataset


@dataclass(frozen=True)
class RowKind:
    """How the rows of a file are read.

    Attributes:
        columns: what the task reads, in its order -> number of the column in the released files.
        rows: the dataset class, as "module:name". arguments: what the class takes first.
        options: the dataclass of the rows' options, as "module:name".
        checks_answers: whether the dataset takes `answers`, the closed set that answers to learn from must be in.
    """

    columns: Mapping[str, int]
    rows: str
    options: str = "data.base:DataConfig"
    arguments: tuple[str, ...] = ()
    checks_answers: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in the order that the task reads them."""
        return tuple(self.columns)

    @property
    def selected_cols(self) -> str:
        """What the released scripts pass as --selected-cols in training."""
        return self.select(self.columns)

    def select(self, names: Mapping[str, Any] | tuple[str, ...]) -> str:
        """--selected-cols for some of the columns; KeyError for a column that the task does not have."""
        return ",".join(str(self.columns[name]) for name in names)

    @property
    def config(self) -> "type[DataConfig]":
        """The dataclass of the rows' options."""
        return resolve_name(self.options)

    @property
    def dataset(self) -> "Callable[..., OFADataset]":
        """What makes the dataset: (rows, vocab, config, split, ...)."""
        return partial(resolve_name(self.rows), *self.arguments)

    @property
    def dataset_class(self) -> "type[OFADataset]":
        """The class of the dataset."""
        return resolve_name(self.rows)


@dataclass(frozen=True, kw_only=True)
class Task(RowKind):
    """A task that answers, with a row's facts first.

    Attributes:
        prompts: kind ("" for the usual one) -> byte pair encoding -> template. A leading space is part of it:
            GPT-2's encoding distinguishes " what" from "what".
        record: fields of a record and their types, the id first.
        recipe: options of the released recipe, for models that were not trained for the task. It has no
            --prompt-type: pretraining repeats nothing to the decoder, and asks whether an image shows what a text
            says in the same words.
        decoding: how the released evaluation decodes; empty where it ranks a closed set of answers.
        evaluated: columns that the released evaluation reads from elsewhere.
        switched: columns that are read only with an option -> the option. optional: columns that tables may lack.
        server: where records go to be scored, if it needs integer ids.
    """

    prompts: Mapping[str, Mapping[str, str]]
    record: Mapping[str, type]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    evaluated: Mapping[str, int] = field(default_factory=dict)
    switched: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    server: Server | None = None


def _glue(name: str, prompt: str, **columns: int) -> Task:
    return Task(
        columns=columns,
        rows="data.glue:GlueDataset",
        arguments=(name,),
        options="data.glue:GlueData",
        prompts={"": {"gpt2": prompt}},
        record={"hyp": str, "ref": str},
    )


TASKS: dict[str, Task] = {
    "caption": Task(
        columns={"id": 0, "image": 4, "caption": 2},
        rows="data.caption:CaptionDataset",
        prompts={"": {"gpt2": " what does the image describe?", "bert": "图片描述了什么内容?"}},
        record={"image_id": int, "caption": str},
        decoding={"beam": 5, "max_len_b": 16, "no_repeat_ngram_size": 3},
        evaluated={"id": 1},  # the image's id
        server=COCO_SERVER,
    ),
    "vqa_gen": Task(
        columns={"id": 0, "image": 5, "question": 2, "answers": 3, "objects": 4},
        rows="data.vqa_gen:VqaGenDataset",
        options="data.vqa_gen:VqaGenData",
        checks_answers=True,
        prompts={"": {"gpt2": " {question}"}, "objects": {"gpt2": " {question} object: {objects}"}},
        record={"question_id": int, "answer": str},
        recipe={"max_src_length": 80},
        decoding={"beam": 5, "unnormalized": True},
        switched={"objects": "add_object"},
        optional=("objects",),
        server=VQA_SERVER,
    ),
    "refcoco": Task(
        columns={"id": 0, "image": 4, "text": 2, "box": 3},
        rows="data.refcoco:RefcocoDataset",
        options="data.refcoco:RefcocoData",
        prompts={
            "": {
                "gpt2": ' which region does the text " {text} " describe?',
                "bert": '这段文字" {text} "描述的是哪个区域？',
            }
        },
        record={"uniq_id": str, "box": list},
        recipe={"max_src_length": 80},
        decoding={"beam": 5, "no_repeat_ngram_size": 3},
    ),
    "snli_ve": Task(
        columns={"id": 0, "image": 2, "hypothesis": 3, "caption": 4, "label": 5},
        rows="data.snli_ve:SnliVeDataset",
        options="data.snli_ve:SnliVeData",
        prompts={
            "": {"gpt2": ' does the image describe " {hypothesis} "?'},
            "caption": {"gpt2": ' can image and text1 " {caption} " imply text2 " {hypothesis} "?'},
        },
        record={"uniq_id": str, "answer": str},
        recipe={"max_src_length": 80},
        switched={"caption": "add_caption"},
    ),
    "image_classify": Task(
        columns={"image": 0, "name": 2},
        rows="data.image_classify:ImageClassifyDataset",
        options="data.image_classify:ImageClassifyData",
        checks_answers=True,
        prompts={"": {"gpt2": " what does the image describe?"}},
        record={"uniq_id": int, "answer": str},
    ),
    "image_gen": Task(
        columns={"id": 0, "text": 2, "codes": 1},
        rows="data.image_gen:ImageGenDataset",
        options="data.image_gen:ImageGenData",
        prompts={"": {"gpt2": " what is the complete image? caption: {caption}"}},
        record={"sample_id": str, "caption": str},
        decoding={"sampling": True, "sampling_topk": 256},
    ),
    "gigaword": Task(
        columns={"article": 0, "summary": 1},
        rows="data.gigaword:GigawordDataset",
        options="data.gigaword:GigawordData",
        prompts={
            "": {
                "gpt2": ' what is the summary of article " {source} "?',
                "bert": "{source} 请用一个句子简单总结上文：",
            }
        },
        record={"hyp": str, "ref": str},
        recipe={"max_src_length": 512},
        decoding={"beam": 6, "lenpen": 0.7, "max_len_b": 32, "no_repeat_ngram_size": 3},
    ),
    "cola": _glue("cola", ' is the text " {sentence} " grammatically correct?', sentence=1, label=2),
    "mnli": _glue("mnli", ' can text1 " {first} " imply text2 " {second} "?', first=0, second=1, label=2),
    "mrpc": _glue(
        "mrpc", ' does text1 " {first} " and text2 " {second} " have the same semantics?', first=0, second=1, label=2
    ),
    "qnli": _glue(
        "qnli", ' does " {sentence} " contain the answer to question " {question} "?', question=1, sentence=2, label=3
    ),
    "qqp": _glue("qqp", ' is question " {first} " and question " {second} " equivalent?', first=3, second=4, label=5),
    "rte": _glue("rte", ' can text1 " {first} " imply text2 " {second} "?', first=1, second=2, label=3),
    "sst2": _glue("sst2", ' is the sentiment of text " {sentence} " positive or negative?', sentence=0, label=1),
}


def _pretrain(rows: str, **columns: int) -> RowKind:
    return RowKind(columns, rows, "data.pretrain_rows:PretrainData")


# The files of pretraining, which has several and no answers of its own.
PRETRAINING: dict[str, RowKind] = {
    "pretrain": _pretrain(
        "data.image_text:ImageTextDataset", id=0, image=1, caption=2, question=3, refs=4, gt_objects=5, dataset_name=6,
        type=7,
    ),
    "pretrain_text": _pretrain("data.pretrain_rows:TextInfillingDataset", id=0, text=1),
    "pretrain_image": _pretrain("data.pretrain_rows:ImageInfillingDataset", id=0, image=1, codes=2),
    "pretrain_detection": _pretrain("data.pretrain_rows:DetectionDataset", id=0, image=1, objects=2),
    "pretrain_image_gen": _pretrain("data.pretrain_rows:TextToImageDataset", id=0, text=2, codes=1),
}  # fmt: skip
