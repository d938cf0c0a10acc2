"""Evaluates: `python evaluate.py test.tsv --path=checkpoint.pt --task=caption ...` -> predictions as JSON, and scores.

The task and its options come from the checkpoint, unless `--model-overrides` or, before it, a flag says otherwise;
generation options and batch size come from the command line, and with `--zero-shot` the whole task. A flag that would
do nothing is refused. No task is named in here.
"""

import ofa_module  # isort: skip  # noqa: F401  (before fairseq, whose import it quiets)

import argparse
import json
import logging
import sys
from collections.abc import Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq import options
from fairseq import tasks as fairseq_tasks
from fairseq import utils as fairseq_utils
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.logging.progress_bar import progress_bar
from omegaconf import DictConfig, OmegaConf, open_dict

from models.generation import GenerationConfig
from models.ofa import OFA, OFAConfig
from models.ofa.compiling import compile_layers
from models.ofa.inference import prepare_for_inference
from models.weights import load_model
from models.weights.card import Card
from models.weights.description import ANSWER_OPTIONS, describe, find_vocabulary
from ofa_module import cli, evaluation_flags
from ofa_module.evaluation_share import Share, found_in, resume, run_of
from tasks.base import Evaluation, OFATask
from utils.checkpoint import load_checkpoint
from utils.distributed import gather_objects, is_main, rank, world_size
from utils.errors import UserError
from utils.files import check_folder
from utils.part_files import PartFiles
from utils.predictions import Record, write_json, write_predictions

logger = logging.getLogger("evaluate")


@dataclass
class EvaluationFlags(FairseqDataclass):
    """Flags that only evaluation has."""

    ema_eval: bool = field(default=False, metadata={"help": "evaluate the averaged weights of the checkpoint"})
    zero_shot: bool = field(
        default=False, metadata={"help": "take only weights from the checkpoint, and the task from the command line"}
    )
    beam_search_vqa_eval: bool = field(
        default=False, metadata={"help": "answer by beam search instead of ranking all answers"}
    )
    with_scores: bool = field(
        default=False, metadata={"help": "add the model's confidence to each record (probability or log-probability)"}
    )
    compile: bool = field(
        default=False, metadata={"help": "compile the model's layers (torch.compile); the first batches take longer"}
    )
    cuda_graphs: bool = field(default=False, metadata={"help": "replay steps of generation as CUDA graphs on a GPU"})
    int8: bool = field(default=False, metadata={"help": "int8 weights in the layers: a quarter of the memory"})
    check_submission: Optional[str] = field(
        default=None, metadata={"help": "only check this file of predictions against the data file"}
    )


def _parser() -> argparse.ArgumentParser:
    parser = options.get_generation_parser(default_task="caption")
    gen_parser_from_dataclass(parser.add_argument_group("evaluation"), EvaluationFlags())
    return parser


def parse_args(argv: Sequence[str]) -> DictConfig:
    """Configuration of an evaluation command line; SystemExit on a bad flag.

    Its own flags are under `evaluation`, the names of the options that stand on the line under `given`.
    """
    cfg, flags = cli.parse(_parser, argv)
    with open_dict(cfg):
        cfg.given = sorted(flags.given)
        cfg.evaluation = {f.name: getattr(flags, f.name) for f in fields(EvaluationFlags) if f.name != "_name"}
    return cfg


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates as the command line says."""
    cfg = parse_args(sys.argv[1:] if argv is None else argv)
    cli.run(evaluate, cfg, lambda _: "Rerun the same command to answer the rows that are left.")


def evaluate(cfg: DictConfig) -> None:
    """Answers every row of the data file once, writes the answers and prints the scores."""
    evaluation_flags.check_given(cfg, cfg.given)
    if (subset := cfg.dataset.gen_subset) in ("", ".", "..") or "/" in subset:
        raise UserError(f"--gen-subset={subset} is part of file names: pass a name such as test.")
    if cfg.evaluation.check_submission is not None:
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
    check_folder(Path(cfg.common_eval.results_path), "--results-path")
    evaluation_flags.check_generation(cfg, cfg.given, task)
    generation = _generation_config(cfg, task)
    of_model = {f.name for f in fields(OFAConfig)}
    models = [_load(path, {key: overrides[key] for key in overrides if key in of_model}, cfg) for path in paths]
    subset = cfg.dataset.gen_subset
    task.needs_references = False
    task.load_dataset(subset)
    parts = PartFiles(Path(cfg.common_eval.results_path) / f"{subset}_predict.json", run_of(cfg, task.cfg))
    with parts.locked() if is_main() else nullcontext():
        _report(cfg, task, _answer(cfg, task, models, subset, generation, parts), subset)
        if is_main():
            parts.remove()


def _task(cfg: DictConfig, paths: list[str], overrides: dict[str, Any]) -> OFATask:
    """The task that the checkpoints are evaluated for; UserError where it is not what they were trained with."""
    checkpoints = {path: load_checkpoint(path, mmap=True) for path in paths}
    config, flags_given = _task_config(cfg, checkpoints[paths[0]], paths[0], overrides)
    task: OFATask = fairseq_tasks.setup_task(config)
    for path, checkpoint in checkpoints.items():
        if (card := Card.read(checkpoint, path)) is not None:
            _check(card, path, task, cfg.evaluation.zero_shot, overrides, flags_given)
    return task


def _task_config(
    cfg: DictConfig, checkpoint: dict[str, Any], path: str, overrides: dict[str, Any]
) -> tuple[DictConfig, dict[str, Any]]:
    """The task's options, and those of them that the command line gives.

    The flags' go first, then the overrides', then, without --zero-shot, the checkpoint's.
    """
    if cfg.evaluation.zero_shot:
        _check_overrides(overrides, cfg.task._name, cfg.task.keys())
        given = evaluation_flags.task_options(cfg, cfg.given, cfg.task._name, cfg.task.keys())
        _follow_overrides(cfg, overrides)
        cfg.task.update(given)
        return cfg.task, given
    args = vars(checkpoint["args"]) if checkpoint.get("args") else {}  # files of old fairseq hold flat options
    stored = (checkpoint.get("cfg") or {}).get("task") or args
    card = Card.read(checkpoint, path)
    name = card.task if card else stored.get("_name") or args.get("task")
    if not name:
        raise UserError(f"{path} does not say which task it was trained for: pass --zero-shot and the task's options.")
    if name not in fairseq_tasks.TASK_DATACLASS_REGISTRY:
        raise UserError(f"{path} was trained for the task {name!r}, which is not registered.")
    if "task" in cfg.given and cfg.task._name != name:
        raise UserError(
            f"{path} was trained for the task {name!r}: leave --task={cfg.task._name} out, or pass --zero-shot."
        )
    config = OmegaConf.structured(fairseq_tasks.TASK_DATACLASS_REGISTRY[name]())
    _check_overrides(overrides, name, config.keys())
    given = evaluation_flags.task_options(cfg, cfg.given, name, config.keys())
    asked = {**overrides, **given}
    for key in given.keys() & overrides.keys():
        if given[key] != overrides[key]:
            logger.warning("%s: %r on the command line overrides --model-overrides.", key, given[key])
    described = _own_options(card, checkpoint, path, bool(asked.get("bpe_dir"))) if card else {}
    if "ans2label_dict" in given or ("ans2label_dict" in overrides and "ans2label_file" not in asked):
        asked["ans2label_file"] = None  # which would win
    evaluation_flags.set_options(config, name, {**stored, **described, "_name": name}, path)
    evaluation_flags.set_options(config, name, {"val_inference_type": "allcand", **asked}, "--model-overrides")
    return config, given


def _follow_overrides(cfg: DictConfig, overrides: dict[str, Any]) -> None:
    """Overrides of the command line's task, where no flag wins."""
    asked = {key: value for key, value in overrides.items() if key not in cfg.given}
    evaluation_flags.set_options(cfg.task, cfg.task._name, asked, "--model-overrides")


def _check_overrides(overrides: dict[str, Any], task: str, options: Set[str]) -> None:
    if unknown := [key for key in overrides if key not in options and key not in {f.name for f in fields(OFAConfig)}]:
        raise UserError(f"--model-overrides: neither the task {task!r} nor the model has an option {unknown[0]!r}.")


def _own_options(card: Card, checkpoint: dict[str, Any], path: str, has_vocabulary: bool) -> dict[str, Any]:
    """What a checkpoint says of its task: its card's options, candidates and, unless given, vocabulary's folder."""
    description = describe(checkpoint, path)
    described = card.task_options(path)
    if not has_vocabulary:
        described["bpe_dir"] = find_vocabulary(description, "--bpe-dir")[0]
    if answers := description.listed(card.task):
        described |= {"ans2label_file": None, "ans2label_dict": json.dumps(answers)}
    return described


def _check(
    card: Card, path: str, task: OFATask, zero_shot: bool, overrides: dict[str, Any], given: dict[str, Any]
) -> None:
    """Raises UserError where a run is not what a checkpoint was trained with, unless --model-overrides say so.

    With --zero-shot only the vocabulary counts.

    Args:
        given: options of the task that stand on the command line.
    """
    flag = "--model-overrides: bpe_dir=" if "bpe_dir" in overrides and "bpe_dir" not in given else "--bpe-dir="
    card.check_vocabulary(task.vocab, path, f"{flag}{task.cfg.bpe_dir}", "name the folder it was trained with")
    if zero_shot:
        return
    card.check_prompts(path)
    for name, value in card.picture.options(path).items():
        run = task.cfg[name]
        if run != value and overrides.get(name) != run:
            raise UserError(
                f"--{name.replace('_', '-')} is {run} in this run, and {path} was trained with {value}: leave it out, "
                f"or pass --model-overrides=\"{{'{name}': {run}}}\"."
            )
    if not {**overrides, **given}.get("unconstrained_training"):
        _check_answers(card, path, task, overrides.keys(), given.keys())


def _check_answers(card: Card, path: str, task: OFATask, overrides: Set[str], given: Set[str]) -> None:
    """Raises UserError for other candidates than the checkpoint's; where they are an override, it only warns."""
    name = "ans2label_file" if task.cfg.get("ans2label_file") else "ans2label_dict"
    file = task.cfg.ans2label_file if name == "ans2label_file" else name
    value = task.cfg.get(name)
    try:
        card.check_answers(task.answers, path, file, f'leave it out, or pass --model-overrides="{ {name: value} }"')
    except UserError as error:
        if ANSWER_OPTIONS & given or not ANSWER_OPTIONS & overrides:
            raise
        logger.warning("%s Using the override.", error)


def check_submission(cfg: DictConfig) -> None:
    """Compares a written file of predictions with the data file: fields, ids and their number."""
    overrides = cli.literal_dict(cfg.common_eval.model_overrides or "{}", "--model-overrides")
    _follow_overrides(cfg, overrides)
    task: OFATask = fairseq_tasks.setup_task(cfg.task)
    task.needs_references = False
    task.load_dataset(cfg.dataset.gen_subset)
    count = task.check_submission(cfg.evaluation.check_submission, cfg.dataset.gen_subset)
    logger.info("%s is complete: %d records.", cfg.evaluation.check_submission, count)


def _generation_config(cfg: DictConfig, task: OFATask) -> GenerationConfig:
    """Generation options of the command line, and the range of the task."""
    values = {f.name: cfg.generation[f.name] for f in fields(GenerationConfig) if f.name in cfg.generation}
    values.update(task.generation_options)
    values["zero_shot"] = cfg.evaluation.zero_shot
    try:
        return GenerationConfig(**values)
    except ValueError as error:
        raise UserError(str(error)) from error


def _load(path: str, overrides: dict[str, Any], cfg: DictConfig) -> OFA:
    device = "cuda" if cli.on_gpu(cfg) else "cpu"
    model = load_model(path, overrides, ema=cfg.evaluation.ema_eval, device=device)
    model = prepare_for_inference(model, _precision(cfg), cfg.evaluation.int8)
    model.cuda_graphs = cfg.evaluation.cuda_graphs
    if cfg.evaluation.compile:
        compile_layers(model)
    return model


def _precision(cfg: DictConfig) -> torch.dtype:
    return torch.float16 if cfg.common.fp16 else torch.bfloat16 if cfg.common.bf16 else torch.float32


@torch.no_grad()
def _answer(
    cfg: DictConfig,
    task: OFATask,
    models: Sequence[OFA],
    subset: str,
    generation: GenerationConfig,
    parts: PartFiles,
) -> Share:
    """This process's share of the rows, answered; what each batch gets is kept in the parts."""
    device, dtype = next(models[0].parameters()).device, _precision(cfg)
    share = resume(parts, len(task.dataset(subset)))
    batches = task.get_batch_iterator(
        task.dataset(subset),
        max_sentences=cfg.dataset.batch_size or 1,
        num_shards=world_size(),
        shard_id=rank(),
        num_workers=cfg.dataset.num_workers,
        data_buffer_size=cfg.dataset.data_buffer_size,
    )
    # Without images, the length of its text is what a row costs. Random numbers belong to rows in the file's order.
    sorts = "image" not in task.dataset(subset).columns and not generation.sampling
    batches.arrange(share.read, task.dataset(subset).rows.sizes() if sorts else None)
    progress = progress_bar(
        batches.next_epoch_itr(shuffle=False),
        (cfg.common.log_format or ("simple" if cfg.common.no_progress_bar else "tqdm")) if is_main() else "none",
        cfg.common.log_interval,
        prefix=subset,
    )
    for rows, batch in zip(batches.frozen_batches, progress, strict=True):
        progress.log({})
        result: Evaluation | None = None
        if "net_input" in batch:
            batch = fairseq_utils.apply_to_sample(lambda x: x.to(device), batch)  # boxes and sums stay in float32
            inputs = batch["net_input"].items()
            batch["net_input"] = {k: x.to(dtype) if x.is_floating_point() else x for k, x in inputs}
            result = task.evaluate(models, batch, generation)
        found = found_in(rows, batch, result, cfg.evaluation.with_scores)
        parts.write([found])
        share.add(found)
    parts.close()
    return share


def _report(cfg: DictConfig, task: OFATask, share: Share, subset: str) -> None:
    """Gathers all processes' answers; rank 0 writes predictions and scores and prints the scores."""
    folder = Path(cfg.common_eval.results_path)
    for message in share.skipped:
        logger.warning("skipped %s.", message)
    missing, unscored = (sum(gather_objects(count)) for count in (len(share.skipped), share.unscored))
    file, count = folder / f"{subset}_predict.json", len(task.dataset(subset))
    records = write_predictions([(row, record) for row, record, _ in share.answers], file, count, missing)
    scores = _scores(task, share, records, unscored < count - missing)
    if records is None:
        return
    if unscored:
        logger.warning("%d of %d rows have no reference: %s.", unscored, count, "the scores are of the others" if scores
                       else "their predictions are written, and there are no scores")  # fmt: skip
    if missing:
        scores["skipped_rows"] = missing
    write_json(scores, folder / f"{subset}_scores.json", indent=4)
    for name, value in scores.items():
        logger.info("%s: %.4f", name, value)
    logger.info("%d predictions in %s", len(records), file)


def _scores(task: OFATask, share: Share, records: list[Record] | None, some: bool) -> dict[str, float]:
    """The metrics over all processes' rows, on rank 0 also those of all records together.

    Args:
        records: all of them on rank 0, else None. some: whether a row has a reference; there are no scores without.
    """
    pairs = sorted(pair for own in gather_objects([(row, refs) for row, _, refs in share.answers]) for pair in own)
    scores: dict[str, float] = {}
    for name, totals in sorted(share.totals().items()):
        # Batches differ with the number of processes, and so do the last digits of what is computed in them.
        scores[name] = float(f"{task.metrics[name].value(totals):.12g}")
        if len(totals) == 2 and some:
            logger.info("score_sum: %s, score_cnt: %s, score: %s (%s)", *totals, round(scores[name], 4), name)
    if not some:
        return {}
    references = [refs for _, refs in pairs]
    if records is not None:
        compared = [pair for pair in zip(records, references, strict=True) if pair[1]]
        scores.update(task.corpus_scores([record for record, _ in compared], [refs for _, refs in compared]))
    return scores


if __name__ == "__main__":
    main()
