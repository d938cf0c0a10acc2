"""What flags on evaluate.py's command line count for: each wins over the checkpoint, or is refused in a sentence."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, Protocol

from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf, StringNode
from omegaconf.errors import ValidationError

from models.generation import GenerationConfig
from utils.errors import UserError

# Flags of fairseq's parser that evaluation reads, besides those of generation and of the task.
USED = frozenset(
    "no_progress_bar log_interval log_format log_file seed cpu bf16 fp16 memory_efficient_bf16 memory_efficient_fp16 "
    "user_dir task data num_workers batch_size data_buffer_size gen_subset path model_overrides results_path "
    "distributed_world_size distributed_num_procs distributed_rank distributed_backend distributed_init_method "
    "distributed_port device_id distributed_no_spawn".split()
)
# Options of tasks that only training reads, and options of generation that need what there is not.
TRAINING_ONLY = frozenset({"uses_ema", "eval_args", "scst", "scst_args", "noise_ratio"})
NOT_GENERATION = frozenset({"gen_code"})
ADVICE = {
    "eval_args": "pass options of generation as flags, such as --beam",
    "uses_ema": "pass --ema-eval",
    "max_tokens": "batches are counted in rows, pass --batch-size",
    "amp": "pass --fp16 or --bf16",
    "tpu": "pass --bf16",
    "nbest": "pass --with-scores for all boxes of a phrase, or use predict.py",
}


# What a value of an option is.
KINDS = {StringNode: "a text", IntegerNode: "an integer", FloatNode: "a number", BooleanNode: "True or False"}


class Task(Protocol):
    """What is asked of a task here."""

    cfg: Any

    @property
    def generation_options(self) -> Mapping[str, Any]:
        """Options of generation that are the task's own."""

    def searches(self, zero_shot: bool) -> bool:
        """Whether answers are generated."""


def check_given(cfg: DictConfig, given: Collection[str]) -> None:
    """Raises UserError for the first flag of the command line that evaluation would not follow."""
    if not isinstance(cfg.task, DictConfig):
        raise UserError("--task names a task that nothing here evaluates: name one of this repository's.")
    generation = {f.name for f in fields(GenerationConfig)} - NOT_GENERATION
    for name in sorted(given):
        of_task = name in cfg.task and name not in TRAINING_ONLY
        if not (of_task or name in USED or name in cfg.evaluation or name in generation):
            raise UserError(f"{flag(name)} is not supported by evaluate.py: {ADVICE.get(name, 'leave it out')}.")
    pairs = [("ans2label_file", "ans2label_dict"), ("int8", "compile")]
    if cfg.task.get("val_inference_type") == "allcand":
        pairs.append(("beam_search_vqa_eval", "val_inference_type"))
    for one, other in pairs:
        if one in given and other in given:
            raise UserError(f"{flag(one)} and {flag(other)} cannot be combined: leave one out.")


def task_options(cfg: DictConfig, given: Collection[str], name: str, known: Collection[str]) -> dict[str, Any]:
    """Options of the task that stand on the command line.

    Args:
        name: the task that the checkpoint was trained for. known: the options that it has.

    Raises:
        UserError: an option of another task.
    """
    options = {key: cfg.task[key] for key in given if key in cfg.task}
    if cfg.evaluation.beam_search_vqa_eval:
        options["val_inference_type"] = "beamsearch"
    if other := sorted(options.keys() - set(known)):
        shown = "beam_search_vqa_eval" if other[0] == "val_inference_type" else other[0]
        raise UserError(f"{flag(shown)} is not an option of the task {name!r}: leave it out.")
    return options


def set_options(config: DictConfig, task: str, values: Mapping[str, Any], source: str) -> None:
    """Sets the options that a task has; UserError for a value of another type. source: where they are from."""
    typed = OmegaConf.structured(TASK_DATACLASS_REGISTRY[task]())
    for name in [name for name in values if name in typed]:
        kind = KINDS.get(type(typed._get_node(name)), "of another type")
        try:
            if kind == KINDS[StringNode] and not isinstance(values[name], str | None):
                raise ValidationError  # it would become the text of the value
            typed[name] = values[name]
        except ValidationError as error:
            raise UserError(f"{source}: {name} cannot be {values[name]!r:.60}, it must be {kind}.") from error
        config[name] = typed[name]


def check_generation(cfg: DictConfig, given: Collection[str], task: Task) -> None:
    """Raises UserError for an option of generation that the task does not follow."""
    own = task.generation_options
    for name in sorted(set(given) & {f.name for f in fields(GenerationConfig)} - {"zero_shot", "constraint_range"}):
        if not task.searches(cfg.evaluation.zero_shot):
            raise UserError(
                f"{flag(name)} is an option of beam search, and all answers are ranked exactly: leave it out, or pass "
                "--beam-search-vqa-eval."
            )
        if name in own and own[name] != cfg.generation[name]:
            raise UserError(f"{flag(name)} is always {own[name]} for this task: leave it out.")


def flag(name: str) -> str:
    """An option as it is written on a command line."""
    return f"--{name.replace('_', '-')}"
