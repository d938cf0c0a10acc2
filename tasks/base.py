"""What every task shares: vocabulary, datasets, batches, the training and validation step, metrics."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.tasks import FairseqTask
from torch import nn

from data.base import DataConfig, OFADataset
from data.row_index import Rows
from data.sharding import Read, file_for_epoch, plan_batches
from data.tables import open_rows, table_class
from data.tasks import Task
from data.text import Vocabulary
from metrics.sums import Metric
from models.generation import GenerationConfig, Hypothesis
from models.ofa import OFA
from models.ofa.model import ENCODER_INPUTS
from models.weights.card import Card
from models.weights.description import decoding_defaults
from tasks.epochs import EpochBatches, Order
from utils.errors import UserError
from utils.predictions import Record, check_predictions


@dataclass
class OFATaskConfig(DataConfig, FairseqDataclass):
    """Options of the data engine as flags; tasks add their own."""


@dataclass
class Evaluation:
    """What a task says of one batch.

    Attributes:
        records: one leaderboard record per sample. references: what each sample is compared with, if anything.
        sums: metric name -> sums that add up over batches and processes; `OFATask.metrics` turns them into a figure.
        confidences: per sample, what `--with-scores` adds to its record.
        unscored: number of samples without a reference, which no sum counts.
    """

    records: list[Record]
    references: list[list[str]] = field(default_factory=list)
    sums: dict[str, tuple[float, ...]] = field(default_factory=dict)
    confidences: list[dict[str, Any]] = field(default_factory=list)
    unscored: int = 0


class OFATask(FairseqTask):
    """Base of the tasks: one says which dataset it reads, and how a batch is answered and scored.

    Attributes:
        row: what is known of the task.
        shuffle_rows: whether training rows come in a new order each epoch; the trainer sets it (`--curriculum`).
        metrics: what validation logs and evaluation prints.
        results_path: folder of evaluation's files without --results-path.
        answers: the candidates of a task that chooses among some.
        needs_references: False lets rows be answered that have no reference, such as a leaderboard's test set.
    """

    row: ClassVar[Task]
    metrics: Mapping[str, Metric] = {}
    results_path: str | None = None
    answers: Sequence[str] = ()
    needs_references = True

    def __init__(self, cfg: Any, vocab: Vocabulary) -> None:
        super().__init__(cfg)
        self.vocab = vocab
        self.shuffle_rows = not cfg.no_shuffle_rows

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> "OFATask":
        """The task with its vocabulary; UserError for missing data or vocabulary folders."""
        if not cfg.data:
            raise UserError("No data file given: name TSV files as the first argument, e.g. train.tsv,val.tsv.")
        if not cfg.bpe_dir:
            raise UserError("--bpe-dir is missing: name the folder with dict.txt, e.g. utils/BPE.")
        return cls(cfg, Vocabulary.load(cfg.bpe_dir, cfg.bpe or "gpt2", cfg.code_dict_size, cfg.num_bins))

    @property
    def source_dictionary(self) -> Vocabulary:
        """The vocabulary, under the name fairseq asks for."""
        return self.vocab

    @property
    def target_dictionary(self) -> Vocabulary:
        """The vocabulary, under the name fairseq asks for."""
        return self.vocab

    def max_positions(self) -> tuple[int, int]:
        """Longest source and target, in tokens."""
        return self.cfg.max_source_positions, self.cfg.max_target_positions

    @property
    def uses_ema(self) -> bool:
        """Whether validation answers with the averaged weights; the trainer asks."""
        return bool(self.cfg.get("uses_ema", False))

    @property
    def paths(self) -> list[str]:
        """Data files; the last one is for validation and evaluation."""
        return self.cfg.data.split(",")

    def has_sharded_data(self, split: str) -> bool:
        """Whether epochs read different training files."""
        return len(self.paths) > 2

    def load_dataset(self, split: str, combine: bool = False, epoch: int = 1, **_: Any) -> None:
        """Opens the split's file: the epoch's one for `train`, the last one for everything else."""
        if split == "train" and split not in self.datasets:
            for path in self.paths[:-1]:  # columns that later epochs would miss
                if table_class(path, self.row.names):
                    self.open_rows(path, split)
        rows = self.open_rows(file_for_epoch(self.paths, split, epoch), split)
        self.datasets[split] = self.build_dataset(rows, split, epoch)
        self.datasets[split].needs_references = self.needs_references

    def open_rows(self, path: str, split: str, names: Sequence[str] = ()) -> Rows:
        """A data file of a split; `names`: what to read of it; () = all."""
        needs_references = split == "train" or self.needs_references
        return open_rows(path, self.cfg.selected_cols, self.row, self.cfg, needs_references, names)

    def build_dataset(self, rows: Rows, split: str, epoch: int) -> OFADataset:
        """The task's dataset over an open file."""
        return self.row.dataset(rows, self.vocab, self.cfg, split, epoch=epoch, **self.dataset_options)

    @property
    def dataset_options(self) -> dict[str, Any]:
        """What the task's dataset takes besides the options of its rows."""
        return {}

    def dataset(self, split: str) -> OFADataset:
        """A loaded split."""
        return self.datasets[split]

    def get_batch_iterator(
        self,
        dataset: OFADataset,
        max_sentences: int | None = None,
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        **_: Any,
    ) -> EpochBatches:
        """Batches of `max_sentences` rows of this process's share; token budgets and size filters do not apply."""
        if max_sentences is None:
            raise UserError("--batch-size is missing: pass the number of rows per batch.")
        dataset.seed = seed
        return EpochBatches(
            dataset=dataset,
            collate_fn=self.collate_of(dataset),
            plan=partial(self.plan_of, dataset, max_sentences, shard_id, num_shards, epoch),
            order=Order(seed, dataset.split == "train" and self.shuffle_rows),
            setting=Read(num_shards, max_sentences, 0),
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=data_buffer_size,
        )

    def plan_of(
        self,
        dataset: OFADataset,
        batch_size: int,
        shard_id: int,
        num_shards: int,
        epoch: int,
        order: Order,
        read: Sequence[Read] = (),
    ) -> list[np.ndarray]:
        """Numbers of the rows in each batch of this process; `read`: what is done of the epoch with other settings."""
        return plan_batches(len(dataset), batch_size, shard_id, num_shards, order.seed, epoch, order.shuffle, read)

    def collate_of(self, dataset: OFADataset) -> Callable[[Sequence[Any]], Any]:
        """What makes a batch of a dataset's items."""
        return dataset.collater

    def train_step(
        self,
        sample: dict[str, Any],
        model: BaseFairseqModel,
        criterion: nn.Module,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **_: Any,
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Forward and backward of one batch; `ignore_grad` runs it for its communication only."""
        model.train()
        model.set_num_updates(update_num)
        with torch.autograd.profiler.record_function("forward"):
            # fairseq's own trainer leaves --amp to the task; ours has its precision in the criterion it passes.
            amp = isinstance(optimizer, AMPOptimizer)
            with torch.amp.autocast(next(model.parameters()).device.type) if amp else nullcontext():
                loss, sample_size, logged = criterion(model, sample, update_num=update_num)
        if ignore_grad:
            loss = loss * 0
        with torch.autograd.profiler.record_function("backward"):
            optimizer.backward(loss)
        return loss, sample_size, logged

    def valid_step(
        self, sample: dict[str, Any], model: nn.Module, criterion: nn.Module, ema_model: nn.Module | None = None
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Loss of the live model, and the task's metrics (of the averaged model where there is one)."""
        model.eval()
        with torch.no_grad():
            loss, sample_size, logged = criterion(model, sample)
            if self.validation_config is not None:
                scored = unwrap(ema_model if ema_model is not None else model).eval()
                result = self.evaluate([scored], sample, self.validation_config)
                for name, sums in result.sums.items():
                    logged.update({f"_{name}_{i}": value for i, value in enumerate(sums)})
        return loss, sample_size, logged

    def reduce_metrics(self, logging_outputs: Sequence[Mapping[str, Any]], criterion: nn.Module) -> None:
        """fairseq's and the criterion's metrics, and the task's own from sums over all samples."""
        super().reduce_metrics(logging_outputs, criterion)
        for name, metric in self.metrics.items():
            keys = sorted({key for output in logging_outputs for key in output if key.rpartition("_")[0] == f"_{name}"})
            for key in keys:
                metrics.log_scalar_sum(key, sum(float(output.get(key, 0)) for output in logging_outputs))
            if keys:
                metrics.log_derived(name, partial(_figure, metric, keys))

    @property
    def generation_options(self) -> dict[str, Any]:
        """Options of generation that are the task's, whatever evaluation's command line says."""
        return {"constraint_range": self.cfg.constraint_range}

    @property
    def validation_config(self) -> GenerationConfig | None:
        """How validation generates; None if it only computes the loss."""
        return None

    def card(self) -> Card:
        """What the checkpoints of a run of this task say of themselves; UserError for wrong --eval-args."""
        eval_args = self.cfg.get("eval_args") or "{}"
        GenerationConfig.from_json(eval_args, "--eval-args", **self.generation_options)
        decoding = decoding_defaults(self.cfg._name, eval_args)
        return Card.make(self.cfg._name, self.cfg, self.vocab, self.answers, decoding)

    @abstractmethod
    def evaluate(self, models: Sequence[OFA], batch: Mapping[str, Any], config: GenerationConfig) -> Evaluation:
        """Answers a batch and scores the answers: the one way, for validation and for evaluate.py."""

    def searches(self, zero_shot: bool) -> bool:
        """Whether answers are generated, so that options of generation count; a closed set is ranked instead."""
        return True

    def check_submission(self, path: str, split: str) -> int:
        """Number of records of a file of predictions that has one per row of a loaded split, with the right id.

        Raises UserError: not such a file.
        """
        dataset = self.dataset(split)
        id_field, id_type = next(iter(self.row.record.items()))
        ids: list[Any] | None = None
        if id_field.endswith("_id"):
            with_id = dataset.columns[0] == "id"
            ids = [dataset.rows[row][0] if with_id else id_type(row) for row in range(len(dataset))]
        return check_predictions(path, self.row.record, len(dataset), ids, self.row.server)

    def corpus_scores(self, records: list[Record], references: list[list[str]]) -> dict[str, float]:
        """Scores of all records together, for metrics that are not averages over samples."""
        return {}


def _figure(metric: Metric, keys: Sequence[str], meters: Mapping[str, Any]) -> float:
    """A metric's figure, rounded, from the sums that fairseq's meters hold."""
    return round(metric.value([meters[key].sum for key in keys]), metric.digits)


def encoder_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What `OFA.encode` takes of a batch."""
    return {key: batch["net_input"][key] for key in ENCODER_INPUTS if key in batch["net_input"]}


def generation_confidence(hypothesis: Hypothesis, given: int = 0) -> dict[str, float]:
    """What `--with-scores` says of a generated text; its first `given` tokens were forced and do not count."""
    return {"log_prob": hypothesis.log_prob(given), "mean_log_prob": hypothesis.mean_log_prob(given)}


def unwrap(model: nn.Module) -> OFA:
    """The model inside data-parallel wrappers."""
    inner: Any = model
    while hasattr(inner, "module"):
        inner = inner.module
    return inner
