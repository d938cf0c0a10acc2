"""Evaluates: `python evaluate.py test.tsv --path=checkpoint.pt --task=caption ...` -> predictions as JSON, and scores.

The task and its options come from the checkpoint (`--model-overrides` changes them), generation options and batch size
from the command line; with `--zero-shot` the task comes from the command line too. No task is named in here.
"""

import ofa_module  # isort: skip  # noqa: F401  (before fairseq, whose import it quiets)

import argparse
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

from models.generation import GenerationConfig
from models.ofa import OFAConfig
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
    task: OFATask = fairseq_tasks.setup_task(_task_config(cfg, paths[0], overrides))
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


def _task_config(cfg: DictConfig, path: str, overrides: dict[str, Any]) -> DictConfig:
    """The task's options: the command line's, or the checkpoint's with overrides."""
    if cfg.evaluation.zero_shot:
        return cfg.task
    checkpoint = load_checkpoint(path, mmap=True)
    args = vars(checkpoint["args"]) if checkpoint.get("args") else {}  # files of old fairseq hold flat options
    stored = (checkpoint.get("cfg") or {}).get("task") or args
    name = stored.get("_name") or args.get("task")
    if not name:
        raise UserError(f"{path} says nothing of its task: pass --zero-shot and the task's options.")
    if name not in fairseq_tasks.TASK_DATACLASS_REGISTRY:
        raise UserError(f"{path} was trained for the task {name!r}, which is not registered.")
    config = OmegaConf.structured(fairseq_tasks.TASK_DATACLASS_REGISTRY[name]())
    if unknown := [key for key in overrides if key not in config and key not in {f.name for f in fields(OFAConfig)}]:
        raise UserError(f"--model-overrides: neither the task {name!r} nor the network has an option {unknown[0]!r}.")
    given = {"data": cfg.task.data} if cfg.task.data else {}
    inference = {"val_inference_type": "beamsearch" if cfg.evaluation.beam_search_vqa_eval else "allcand"}
    for key, value in {**stored, **given, **inference, **overrides, "_name": name}.items():
        if key in config:
            config[key] = value
    return config


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
