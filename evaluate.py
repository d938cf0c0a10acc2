"""Evaluates: `python evaluate.py test.tsv --path=checkpoint.pt --task=caption ...` -> predictions as JSON, and scores.

The task and its options come from the checkpoint (`--model-overrides` changes them), generation options, batch size
and `--bpe-dir` from the command line; with `--zero-shot` the task comes from there too. No task is named in here.
"""

import ofa_module  # isort: skip  # noqa: F401  (before fairseq, whose import it quiets)

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq import options
from fairseq import tasks as fairseq_tasks
from fairseq import utils as fairseq_utils
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn
from tqdm import tqdm

from data.answers import read_answers
from data.base import DataConfig
from data.card import Card
from models.generation import GenerationConfig
from models.ofa import OFAConfig
from models.predictor.description import ANSWER_OPTIONS, describe, find_vocabulary
from ofa_module import cli
from tasks.base import Evaluation, OFATask
from utils.checkpoint import load_checkpoint, load_model
from utils.distributed import gather_objects, is_main, rank, sum_over_ranks, world_size
from utils.errors import UserError
from utils.predictions import Record, write_json, write_predictions

logger = logging.getLogger("evaluate")


@dataclass
class EvaluationFlags(FairseqDataclass):
    """Flags that only evaluation has."""

    ema_eval: bool = field(default=False, metadata={"help": "evaluate the averaged weights of the checkpoint"})
    zero_shot: bool = field(
        default=False, metadata={"help": "take the task from the command line, and only weights from the file"}
    )
    beam_search_vqa_eval: bool = field(
        default=False, metadata={"help": "answer by beam search, not by ranking all answers"}
    )
    with_scores: bool = field(
        default=False, metadata={"help": "add to each record how sure the network is (probability or log-probability)"}
    )
    check_submission: Optional[str] = field(
        default=None, metadata={"help": "evaluate nothing: check this file of predictions against the data file"}
    )


def _parser() -> argparse.ArgumentParser:
    parser = options.get_generation_parser(default_task="caption")
    gen_parser_from_dataclass(parser.add_argument_group("evaluation"), EvaluationFlags())
    return parser


def parse_args(argv: Sequence[str]) -> DictConfig:
    """Configuration of an evaluation command line, its own flags under `evaluation`; SystemExit on a bad flag."""
    cfg, flags = cli.parse(_parser, argv)
    with open_dict(cfg):
        cfg.evaluation = {f.name: getattr(flags, f.name) for f in fields(EvaluationFlags) if f.name != "_name"}
    return cfg


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates as the command line says."""
    cli.run(evaluate, parse_args(sys.argv[1:] if argv is None else argv))


def evaluate(cfg: DictConfig) -> None:
    """Answers every row of the data file once, writes the answers and prints the scores."""
    if cfg.evaluation.check_submission:
        check_submission(cfg)
        return
    if not cfg.common_eval.path:
        raise UserError("--path is missing: name the checkpoint, or several separated by colons.")
    torch.manual_seed(cfg.common.seed)
    overrides = cli.literal_dict(cfg.common_eval.model_overrides or "{}", "--model-overrides")
    paths = fairseq_utils.split_paths(cfg.common_eval.path)
    task = _task(cfg, paths, overrides)
    cfg.common_eval.results_path = cfg.common_eval.results_path or task.results_path
    if not cfg.common_eval.results_path:
        raise UserError("--results-path is missing: name the folder for the predictions.")
    generation = _generation_config(cfg, task)
    of_model = {f.name for f in fields(OFAConfig)}
    models = [_load(path, {key: overrides[key] for key in overrides if key in of_model}, cfg) for path in paths]
    subset = cfg.dataset.gen_subset
    task.load_dataset(subset)
    rows, sums, skipped = _answer(cfg, task, models, subset, generation)
    _report(cfg, task, rows, sums, skipped, subset)


def _task(cfg: DictConfig, paths: list[str], overrides: dict[str, Any]) -> OFATask:
    """The task that the checkpoints are evaluated for; UserError where it is not what they were trained with."""
    checkpoints = {path: load_checkpoint(path, mmap=True) for path in paths}
    task: OFATask = fairseq_tasks.setup_task(_task_config(cfg, checkpoints[paths[0]], paths[0], overrides))
    for path, checkpoint in checkpoints.items():
        if (card := Card.read(checkpoint, path)) is not None:
            _check(card, path, task, cfg, overrides)
    return task


def _task_config(cfg: DictConfig, checkpoint: dict[str, Any], path: str, overrides: dict[str, Any]) -> DictConfig:
    """The task's options: the command line's, or the checkpoint's with overrides."""
    if cfg.evaluation.zero_shot:
        return cfg.task
    args = vars(checkpoint["args"]) if checkpoint.get("args") else {}  # files of old fairseq hold flat options
    stored = (checkpoint.get("cfg") or {}).get("task") or args
    card = Card.read(checkpoint, path)
    name = card.task if card else stored.get("_name") or args.get("task")
    if not name:
        raise UserError(f"{path} says nothing of its task: pass --zero-shot and the task's options.")
    if name not in fairseq_tasks.TASK_DATACLASS_REGISTRY:
        raise UserError(f"{path} was trained for the task {name!r}, which is not registered.")
    config = OmegaConf.structured(fairseq_tasks.TASK_DATACLASS_REGISTRY[name]())
    if unknown := [key for key in overrides if key not in config and key not in {f.name for f in fields(OFAConfig)}]:
        raise UserError(f"--model-overrides: neither the task {name!r} nor the network has an option {unknown[0]!r}.")
    given = {key: cfg.task[key] for key in ("data", "bpe_dir") if cfg.task.get(key)}
    own = _own_options(card, checkpoint, path, bool({**given, **overrides}.get("bpe_dir"))) if card else {}
    inference = {"val_inference_type": "beamsearch" if cfg.evaluation.beam_search_vqa_eval else "allcand"}
    for key, value in {**stored, **own, **given, **inference, **overrides, "_name": name}.items():
        if key in config:
            config[key] = value
    return config


def _own_options(card: Card, checkpoint: dict[str, Any], path: str, has_vocabulary: bool) -> dict[str, Any]:
    """What a checkpoint says of its task: its card's options, candidates and, unless given, vocabulary's folder."""
    description = describe(checkpoint, path)
    own = card.task_options(path)
    if not has_vocabulary:
        own["bpe_dir"] = find_vocabulary(description, "--bpe-dir")[0]
    if answers := description.listed(card.task):
        own |= {"ans2label_file": None, "ans2label_dict": json.dumps(answers)}
    return own


def _check(card: Card, path: str, task: OFATask, cfg: DictConfig, overrides: dict[str, Any]) -> None:
    """Raises UserError where a run is not what a checkpoint was trained with, unless --model-overrides say so.

    With --zero-shot only the vocabulary counts.
    """
    flag = "--model-overrides: bpe_dir=" if "bpe_dir" in overrides else "--bpe-dir="
    card.check_vocabulary(task.vocab, path, f"{flag}{task.cfg.bpe_dir}", "name the folder it was trained with")
    if cfg.evaluation.zero_shot:
        return
    card.check_prompts(path)
    usual = DataConfig()
    for name, value in card.picture_options(path).items():
        run = task.cfg[name] if cfg.task[name] == getattr(usual, name) else cfg.task[name]
        if run != value and name not in overrides:
            raise UserError(
                f"--{name.replace('_', '-')} is {run} in this run, and {path} was trained with {value}: leave it out, "
                f"or pass --model-overrides=\"{{'{name}': {run}}}\"."
            )
    if not overrides.get("unconstrained_training"):
        _check_answers(card, path, task, cfg, overrides)


def _check_answers(card: Card, path: str, task: OFATask, cfg: DictConfig, overrides: dict[str, Any]) -> None:
    """Raises UserError for other candidates than the checkpoint's; where they are an override, it only warns."""
    explicit = bool(ANSWER_OPTIONS & overrides.keys())
    asked = None if explicit else cfg.task.get("ans2label_file")
    answers = read_answers(cfg.task) if asked else task.answers
    file = asked or task.cfg.get("ans2label_file") or "ans2label_dict"
    try:
        card.check_answers(
            answers, path, file, f"leave it out, or pass --model-overrides=\"{{'ans2label_file': '{file}'}}\""
        )
    except UserError as error:
        if not explicit:
            raise
        logger.warning("%s The override is followed.", error)


def check_submission(cfg: DictConfig) -> None:
    """Compares a written file of predictions with the data file: fields, ids and their number."""
    overrides = cli.literal_dict(cfg.common_eval.model_overrides or "{}", "--model-overrides")
    cfg.task.update({key: value for key, value in overrides.items() if key in cfg.task})
    task: OFATask = fairseq_tasks.setup_task(cfg.task)
    task.load_dataset(cfg.dataset.gen_subset)
    count = task.check_submission(cfg.evaluation.check_submission, cfg.dataset.gen_subset)
    logger.info("%s is complete: %d records.", cfg.evaluation.check_submission, count)


def _generation_config(cfg: DictConfig, task: OFATask) -> GenerationConfig:
    """Generation options of the command line, and the range of the task."""
    given = cfg.generation
    for flag in ("constraints", "lm_path"):
        if given.get(flag):
            raise UserError(f"--{flag.replace('_', '-')} is not supported by evaluate.py: leave it out.")
    values = {f.name: given[f.name] for f in fields(GenerationConfig) if f.name in given}
    values.update(task.generation_options)
    values["zero_shot"] = cfg.evaluation.zero_shot
    try:
        return GenerationConfig(**values)
    except ValueError as error:
        raise UserError(str(error)) from error


def _load(path: str, overrides: dict[str, Any], cfg: DictConfig) -> nn.Module:
    cuda = torch.cuda.is_available() and not cfg.common.cpu
    model = load_model(path, overrides, ema=cfg.evaluation.ema_eval, device="cuda" if cuda else "cpu")
    return model.to(_precision(cfg))


def _precision(cfg: DictConfig) -> torch.dtype:
    return torch.float16 if cfg.common.fp16 else torch.bfloat16 if cfg.common.bf16 else torch.float32


@torch.no_grad()
def _answer(
    cfg: DictConfig, task: OFATask, models: list[nn.Module], subset: str, generation: GenerationConfig
) -> tuple[list[tuple[int, tuple[Record, list[str]]]], dict[str, tuple[float, ...]], list[str]]:
    """This process's share: (row, (record, references)), metric sums and messages of skipped rows."""
    device, dtype = next(models[0].parameters()).device, _precision(cfg)
    iterator = task.get_batch_iterator(
        task.dataset(subset),
        max_sentences=cfg.dataset.batch_size or 1,
        num_shards=world_size(),
        shard_id=rank(),
        num_workers=cfg.dataset.num_workers,
    ).next_epoch_itr(shuffle=False)
    rows: list[tuple[int, tuple[Record, list[str]]]] = []
    sums: dict[str, tuple[float, ...]] = {}
    skipped: list[str] = []
    for batch in tqdm(iterator, total=len(iterator), desc=subset, mininterval=_interval(), disable=not is_main()):
        skipped += batch.get("skipped", [])
        if "net_input" not in batch:
            continue
        batch = fairseq_utils.apply_to_sample(lambda x: x.to(device), batch)  # boxes and sums stay in float32
        batch["net_input"] = {k: x.to(dtype) if x.is_floating_point() else x for k, x in batch["net_input"].items()}
        result: Evaluation = task.evaluate(models, batch, generation)
        if cfg.evaluation.with_scores:
            for record, confidence in zip(result.records, result.confidences, strict=True):
                record.update(confidence)
        references = result.references or [[]] * len(result.records)
        rows += zip((int(row) for row in batch["rows"]), zip(result.records, references, strict=True), strict=True)
        for name, values in result.sums.items():
            sums[name] = tuple(map(sum, zip(values, sums.get(name, [0.0] * len(values)), strict=True)))
    return rows, sums, skipped


def _interval() -> float:
    """Seconds between progress updates: a bar on a terminal, a line now and then in a log."""
    return 0.5 if sys.stderr.isatty() else 30.0


def _report(
    cfg: DictConfig,
    task: OFATask,
    rows: list[tuple[int, tuple[Record, list[str]]]],
    sums: dict[str, tuple[float, ...]],
    skipped: list[str],
    subset: str,
) -> None:
    """Gathers all processes' answers; rank 0 writes predictions and scores and prints the scores."""
    folder = Path(cfg.common_eval.results_path)
    for message in skipped:
        logger.warning("skipped %s", message)
    missing = sum(gather_objects(len(skipped)))
    records = write_predictions(
        [(row, record) for row, (record, _) in rows],
        folder / f"{subset}_predict.json",
        len(task.dataset(subset)),
        missing,
    )
    references = sorted(pair for share in gather_objects([(row, refs) for row, (_, refs) in rows]) for pair in share)
    scores: dict[str, float] = {}
    lengths = {
        name: length for share in gather_objects({n: len(v) for n, v in sums.items()}) for name, length in share.items()
    }
    for name, length in sorted(lengths.items()):
        totals = sum_over_ranks(list(sums.get(name, [0.0] * length)))
        # The order of adding, which differs with the number of processes, shows in the last digits only.
        scores[name] = float(f"{task.metrics[name].value(totals):.12g}")
        if length == 2:
            logger.info("score_sum: %s, score_cnt: %s, score: %s (%s)", *totals, round(scores[name], 4), name)
    if records is None:
        return
    scores.update(task.corpus_scores(records, [refs for _, refs in references]))
    if missing:
        scores["skipped_rows"] = missing
    write_json(scores, folder / f"{subset}_scores.json", indent=4)
    for name, value in scores.items():
        logger.info("%s: %.4f", name, value)
    logger.info("%d predictions in %s", len(records), folder / f"{subset}_predict.json")


if __name__ == "__main__":
    main()
