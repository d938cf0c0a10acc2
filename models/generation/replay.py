"""Steps of a search as CUDA graphs: the device repeats what a step launched, without Python in between.

A graph holds the addresses of the step that was recorded. A search therefore records its own, and again when samples
are dropped. What differs between steps on the Python side is the key of a graph: how many positions are looked back
at, in steps of `BUCKET`, and which rules are in force.
"""

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch

BUCKET = 32  # positions; more of them would be looked at in vain, fewer would make more graphs

Replayed = Callable[[], None]


class Replay:
    """The steps of one search.

    Args:
        step: takes the number of positions to look back at; it reads and writes tensors at fixed addresses only.
        capacity: positions there are. rules: names the rules that are in force.
    """

    def __init__(self, step: Callable[[int], None], capacity: int, rules: Callable[[], Hashable]) -> None:
        self.plain, self.capacity, self.rules = step, capacity, rules
        self.graphs: dict[Hashable, Replayed | None] = {}

    def step(self, length: int) -> None:
        """A step that looks back at `length` positions or more."""
        length = min(-(-length // BUCKET) * BUCKET, self.capacity)
        key = (length, self.rules())
        if key not in self.graphs:
            self.graphs[key] = None
            self.plain(length)  # libraries and tables get ready, which must not be part of a graph
            return
        replay = self.graphs[key]
        if replay is None:
            replay = self.graphs[key] = record(lambda: self.plain(length))
        replay()

    def forget(self) -> None:
        """Tensors have moved."""
        self.graphs.clear()


def can_record(device: torch.device) -> bool:
    """Whether a device has graphs."""
    return device.type == "cuda"


def record(step: Callable[[], None]) -> Replayed:
    """Records a step without running it -> what runs it."""
    graph = torch.cuda.CUDAGraph()
    # One pool for all: a graph keeps nothing but the search's own tensors from one step to the next.
    with torch.cuda.graph(graph, pool=_pool(torch.cuda.current_device())):
        step()
    return graph.replay


@cache
def _pool(device: int) -> Any:
    return torch.cuda.graph_pool_handle()
