"""Multitask pretraining: eight objectives from four files (`data/pretrain.py`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairseq.data import iterators
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from torch import nn

from data.pretrain import PretrainDataset
from data.pretrain_rows import PretrainData
from data.tsv import TsvFile
from models.generation import GenerationConfig
from tasks.base import Evaluation, OFATask
from utils.errors import UserError


@dataclass
class UnifyConfig(PretrainData, FairseqDataclass):
    """Options of pretraining."""


@register_task("unify_task", dataclass=UnifyConfig)
class UnifyTask(OFATask):
    """Learns all objectives together; a training batch is a list of two, picture-text examples and the rest."""

    dataset_class = PretrainDataset

    def has_sharded_data(self, split: str) -> bool:
        """Whether epochs read different files: here every file is for training."""
        return len(self.paths) > 1

    def load_dataset(self, split: str, combine: bool = False, epoch: int = 1, **_: Any) -> None:
        """Opens the epoch's picture-text file, the first one for every other split."""
        path = self.paths[(epoch - 1) % len(self.paths)] if split == "train" else self.paths[0]
        self.datasets[split] = self.build_dataset(TsvFile(path, self.cfg.selected_cols), split, epoch)

    def get_batch_iterator(
        self,
        dataset: PretrainDataset,  # type: ignore[override]
        max_sentences: int | None = None,
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        **more: Any,
    ) -> iterators.EpochBatchIterator:
        """As the base; in training each batch also holds its share of the further files' rows."""
        if dataset.split != "train":
            return super().get_batch_iterator(
                dataset, max_sentences, seed, num_shards, shard_id, num_workers, epoch, data_buffer_size, **more
            )
        if max_sentences is None:
            raise UserError("--batch-size is missing: batches are counted in rows.")
        dataset.seed = seed
        return iterators.EpochBatchIterator(
            dataset=dataset,
            collate_fn=dataset.collate_parts,
            batch_sampler=dataset.plan(max_sentences, shard_id, num_shards, epoch, self.shuffle_rows),
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=data_buffer_size if num_workers else 0,  # a thread would share random state
            disable_shuffling=True,
        )

    def evaluate(self, models: Sequence[nn.Module], batch: Mapping[str, Any], config: GenerationConfig) -> Evaluation:
        """Pretraining has no answers of its own."""
        raise UserError("unify_task only trains: evaluate a checkpoint with --zero-shot and the task in question.")
