"""Multitask pretraining: eight objectives from four files, and drawing from a fifth (`data/pretrain.py`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task

from data.base import OFADataset
from data.pretrain import PretrainDataset
from data.pretrain_rows import PretrainData
from data.row_index import Rows
from data.sharding import Read
from data.tsv import TsvFile
from models.generation import GenerationConfig
from models.ofa import OFA
from tasks.base import Evaluation, OFATask
from tasks.epochs import Order
from utils.errors import UserError


@dataclass
class UnifyConfig(PretrainData, FairseqDataclass):
    """Options of pretraining."""


@register_task("unify_task", dataclass=UnifyConfig)
class UnifyTask(OFATask):
    """Learns all objectives together; a training batch is a list of two, image-text examples and the rest."""

    def has_sharded_data(self, split: str) -> bool:
        """Whether epochs read different files: here every file is for training."""
        return len(self.paths) > 1

    def load_dataset(self, split: str, combine: bool = False, epoch: int = 1, **_: Any) -> None:
        """Opens the epoch's image-text file, the first one for every other split."""
        path = self.paths[(epoch - 1) % len(self.paths)] if split == "train" else self.paths[0]
        self.datasets[split] = self.build_dataset(TsvFile(path, self.cfg.selected_cols), split, epoch)

    def build_dataset(self, rows: Rows, split: str, epoch: int) -> OFADataset:
        """Rows of the image-text file; in training the further files' rows come with them."""
        return PretrainDataset(rows, self.vocab, self.cfg, split, epoch=epoch)

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
        """As the base; in training each batch also holds its share of the further files' rows."""
        if isinstance(dataset, PretrainDataset) and dataset.split == "train":
            return dataset.plan(batch_size, shard_id, num_shards, epoch, order.shuffle, order.seed, read)
        return super().plan_of(dataset, batch_size, shard_id, num_shards, epoch, order, read)

    def collate_of(self, dataset: OFADataset) -> Callable[[Sequence[Any]], Any]:
        """As the base; training batches have two parts."""
        if isinstance(dataset, PretrainDataset) and dataset.split == "train":
            return dataset.collate_parts
        return super().collate_of(dataset)

    def evaluate(self, models: Sequence[OFA], batch: Mapping[str, Any], config: GenerationConfig) -> Evaluation:
        """Pretraining has no answers of its own."""
        raise UserError("unify_task only trains: evaluate a checkpoint with --zero-shot and the task in question.")
