"""What the process has imported from which tests fork the programs they run (`tests/programs.py`)."""

import gc
import os
import shutil
from types import SimpleNamespace

import sklearn.datasets  # noqa: F401  # of the digits
import torch._dynamo  # DistributedDataParallel imports it, which takes three seconds
import torch.distributed.fsdp  # noqa: F401  # as well

import evaluate
import predict
import train
from data.text import GPT2_DIR, Vocabulary
from metrics import coco_caption


def without_java(name: str) -> str | None:
    """`shutil.which` where no Java is installed: METEOR's takes eight seconds to start."""
    return None if name == "java" else shutil.which(name)


Vocabulary.load(GPT2_DIR)  # half a second each, were it not known
os.fsync = os.fstat  # no test is about a loss of power
coco_caption.shutil = SimpleNamespace(which=without_java)
gc.collect()
gc.freeze()  # no fork looks through what is here, nor copies it for that
__all__ = ["evaluate", "predict", "train"]
