import json
from pathlib import Path

import pytest
import torch

from tests.programs import start
from utils import distributed

WORKER = """
import json, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from utils import distributed

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
values = torch.tensor([1, 10 * rank])
started = time.monotonic()
if rank == 1:
    time.sleep(0.5)
distributed.sum_over_ranks([0.0])
seen = {
    "waited": time.monotonic() - started,
    "rank": distributed.rank(),
    "world_size": distributed.world_size(),
    "is_main": distributed.is_main(),
    "gathered": distributed.gather_objects({"from": rank, "long": "x" * (1 + 1000 * rank)}),
    "summed": distributed.sum_over_ranks(values).tolist(),
    "kept": values.tolist(),
    "floats": distributed.sum_over_ranks([0.1 + rank, float(2**40)]),
}
json.dump(seen, open(f"{folder}/{rank}.json", "w"))
dist.destroy_process_group()
"""


def test_one_process_needs_no_process_group() -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.sum_over_ranks([1.5, 2.0]) == [1.5, 2.0]
    values = torch.tensor([1, 2])
    total = distributed.sum_over_ranks(values)
    total += 1
    assert values.tolist() == [1, 2]  # the sum is a new tensor
    assert total.dtype == torch.int64


def test_two_processes_agree(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    workers = [start(tmp_path / "worker.py", rank, tmp_path) for rank in (0, 1)]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["rank"] for one in seen] == [0, 1]
    assert [one["is_main"] for one in seen] == [True, False]
    assert seen[0]["waited"] > 0.3
    for rank, one in enumerate(seen):
        assert one["world_size"] == 2
        assert one["gathered"] == [{"from": 0, "long": "x"}, {"from": 1, "long": "x" * 1001}]
        assert one["summed"] == [2, 10] and one["kept"] == [1, 10 * rank]
        assert one["floats"] == pytest.approx([1.2, 2.0**41], rel=1e-15)
