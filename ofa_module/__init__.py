"""What `--user-dir` names: the explicit list of everything registered with fairseq."""

import logging
import sys
import warnings
from importlib import import_module
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])
if _ROOT not in sys.path:  # fairseq-train --user-dir ... starts outside the repository
    sys.path.insert(0, _ROOT)
import ofa_names  # noqa: E402

ofa_names.check(ofa_names.PLUGIN)

# What fairseq says while it is imported concerns tasks that are not ours.
logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.ERROR)
logging.getLogger("hydra").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")

from ofa_module.lean_imports import import_fairseq, spare_compiler  # noqa: E402  (after the path and the loggers are set)

import_fairseq()
spare_compiler()

PLUGIN_MODULES = (
    "models.fairseq_ofa",
    "ofa_module.lr_scheduler",
    "criterions.label_smoothed_cross_entropy",
    "criterions.encouraging_loss",
    "criterions.scst",
    "criterions.clip_scst",
    "tasks.caption",
    "tasks.vqa_gen",
    "tasks.refcoco",
    "tasks.snli_ve",
    "tasks.image_classify",
    "tasks.image_gen",
    "tasks.gigaword",
    "tasks.glue",
    "tasks.unify_task",
)
with import_module("utils.logs").kept_root_logger():  # modules of fairseq configure logging when they are imported
    for _name in PLUGIN_MODULES:
        import_module(_name)
