"""Shared fixtures: the golden figures beside this file and models filled with the golden weights."""

import gc
import importlib
import json
import os
import shutil
import sys
from collections import Counter
from copy import copy
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.text import Vocabulary
from metrics import coco_caption
from models.ofa import OFA, OFAConfig
from models.unset_weights import UnsetWeights
from utils.checkpoint import save_checkpoint

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
weights = importlib.import_module("weights")  # of the golden figures
weights.golden_array = cache(weights.golden_array)  # the same for every model
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests first: none of them is left for the end, when only one process still works."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


def load_golden(name: str) -> Any:
    """Parsed JSON of tests/golden/<name>."""
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def golden_model(**overrides: Any) -> OFA:
    """`ofa_tiny` in eval mode, with the weights all golden figures were measured with."""
    with UnsetWeights():
        model = OFA(OFAConfig.from_arch("ofa_tiny", **overrides))
    return weights.fill_(model).eval()


@pytest.fixture(autouse=True)
def no_java(request, monkeypatch):
    """Captions are scored without Java, whose METEOR takes eight seconds to start, but where Java is what is tested."""
    if "java" not in request.keywords:
        own = SimpleNamespace(which=lambda name: None if name == "java" else shutil.which(name))
        monkeypatch.setattr(coco_caption, "shutil", own)


@pytest.fixture(scope="module")
def one_thread():
    """As in `tests/programs.py`: small models only lose by a second thread, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def golden():
    """Loader of golden JSON files."""
    return load_golden


@pytest.fixture(scope="session")
def tiny_model() -> OFA:
    """The golden `ofa_tiny`; tests must not change it."""
    return golden_model()


@pytest.fixture(scope="session")
def make_golden_model():
    """Factory of golden models with other options."""
    return golden_model


@pytest.fixture(scope="session")
def save_small_network():
    """Writes a small random network, always the same, with task options: `save_small_network(path, _name=...)`."""
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in dict(embed_dim=32, ffn_embed_dim=32, layers=1, attention_heads=4).items()}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = OFA(OFAConfig.from_arch("ofa_demo", **sizes, code_image_size=32))

    def save(path: Path, **task: Any) -> Path:
        cfg = {"model": {**asdict(model.config), "_name": "ofa_demo"}, "task": {"patch_image_size": 32, **task}}
        save_checkpoint({"args": None, "cfg": cfg, "model": model.state_dict(), "extra_state": {}}, path)
        return path

    return save


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Tables of tests are not converted into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_waiting():
    """What costs time and is not what is tested: forcing files to the disk, and reading one vocabulary again and again.

    A vocabulary is read anew when a file of its folder changes; each caller gets its own count of unknown words.
    """
    load = Vocabulary.load

    @lru_cache(8)
    def read(stamps: frozenset[tuple[str, int, int, int]], *args: Any) -> Vocabulary:
        return load(*args)

    def load_once(
        bpe_dir: str | Path, bpe: str = "gpt2", code_dict_size: int = 8192, num_bins: int = 1000
    ) -> Vocabulary:
        stamps = frozenset(
            (entry.name, stat.st_ino, stat.st_size, stat.st_mtime_ns)
            for entry in (os.scandir(bpe_dir) if os.path.isdir(bpe_dir) else ())
            for stat in [entry.stat()]
        )
        vocabulary = copy(read(stamps, str(bpe_dir), bpe, code_dict_size, num_bins))
        vocabulary.unknown_words = Counter()
        return vocabulary

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Vocabulary, "load", staticmethod(load_once))
        patch.setattr(os, "fsync", os.fstat)
        yield
