"""Which of fairseq's flags training follows: the others are refused in a sentence instead of having no effect."""

import argparse
from typing import Any

from omegaconf import DictConfig

from ofa_module.cli import PLUGIN
from ofa_module.run_file import NOT_WRITTEN

GROUPS = ("task", "model", "criterion", "optimizer", "lr_scheduler", "ema", "training")  # all of theirs are followed
FOLLOWED = frozenset(
    "no_progress_bar log_interval log_format log_file aim_repo aim_run_hash tensorboard_logdir wandb_project "
    "azureml_logging seed cpu bf16 memory_efficient_bf16 fp16 memory_efficient_fp16 fp16_init_scale fp16_scale_window "
    "fp16_scale_tolerance min_loss_scale threshold_loss_scale amp user_dir empty_cache_freq data task arch criterion "
    "optimizer lr_scheduler "
    "distributed_world_size distributed_num_procs distributed_rank distributed_backend distributed_init_method "
    "distributed_port device_id distributed_no_spawn nprocs_per_node ddp_backend ddp_comm_hook bucket_cap_mb "
    "fix_batches_to_gpus find_unused_parameters gradient_as_bucket_view broadcast_buffers "
    "num_workers batch_size data_buffer_size train_subset valid_subset validate_interval validate_interval_updates "
    "validate_after_updates fixed_validation_seed disable_validation batch_size_valid max_valid_steps curriculum "
    "update_ordered_indices_seed "
    "max_epoch max_update stop_time_hours clip_norm sentence_avg update_freq lr stop_min_lr skip_remainder_batch "
    "save_dir restore_file continue_once finetune_from_model reset_dataloader reset_lr_scheduler reset_meters "
    "reset_optimizer optimizer_overrides save_interval save_interval_updates keep_interval_updates "
    "keep_interval_updates_pattern keep_last_epochs keep_best_checkpoints no_save no_epoch_checkpoints "
    "no_last_checkpoints no_save_optimizer_state best_checkpoint_metric maximize_best_checkpoint_metric patience "
    "checkpoint_suffix load_checkpoint_on_all_dp_ranks".split()
)
# How fairseq does what we do in another way, or what only data has that we do not read: taken, without effect.
WITHOUT_EFFECT = frozenset(
    "fp16_no_flatten_grads on_cpu_convert_precision all_gather_list_size fast_stat_sync heartbeat_timeout "
    "skip_invalid_size_inputs_valid_test required_batch_size_multiple required_seq_len_multiple dataset_impl "
    "ignore_unused_valid_subsets grouped_shuffling update_epoch_batch_itr write_checkpoints_asynchronously "
    "use_plasma_view plasma_path bpe tokenizer scoring suppress_crashes reset_logging".split()
)
ADVICE = {
    "tpu": "pass --bf16 on a CPU or GPU",
    "max_tokens": "batches are counted in rows, pass --batch-size",
    "max_tokens_valid": "batches are counted in rows, pass --batch-size-valid",
    "amp_init_scale": "pass --fp16-init-scale",
    "amp_scale_window": "pass --fp16-scale-window",
    "combine_valid_subsets": "the last data file is the one that validates",
    "zero_sharding": "every process holds the whole optimizer",
    "fp16_adam_stats": "Adam's moments are float32",
}
DDP_BACKENDS = ("c10d", "pytorch_ddp", "legacy_ddp", "no_c10d")


def check_flags(parser: argparse.ArgumentParser, cfg: DictConfig, flags: argparse.Namespace) -> None:
    """Ends the program with a sentence at the first flag of the command line that training would not follow."""
    for name in sorted(flags.given):
        if name in ADVICE or not (_followed(cfg, name) or name in WITHOUT_EFFECT):
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag} is not supported by train.py: {ADVICE.get(name, 'leave it out')}.")
    if flags.ddp_backend not in DDP_BACKENDS:
        parser.error(f"--ddp-backend={flags.ddp_backend} is not supported by train.py: pass --ddp-backend=pytorch_ddp.")


def repeatable(cfg: DictConfig, flags: argparse.Namespace) -> dict[str, Any]:
    """Flags by name, with their values, that a --config file needs to repeat a run: those given, and all it follows.

    Of the machine's processes only those that were given; no rank, which each process has of its own.
    """
    return {
        name: value
        for name, value in flags.values.items()
        if value is not None
        and name not in NOT_WRITTEN
        and (name in flags.given or not name.startswith("distributed_"))
        and (name != "user_dir" or value != str(PLUGIN))
        and name not in ADVICE
        and (_followed(cfg, name) or name in flags.given)
    }


def _followed(cfg: DictConfig, name: str) -> bool:
    of_group = any(isinstance(cfg.get(group), DictConfig) and name in cfg[group] for group in GROUPS)
    return of_group or name in FOLLOWED
