"""Command lines: the flags of the released captioning scripts mean the same; bad ones end in a sentence."""

import dataclasses
import os
import sys

import pytest
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY

import evaluate
import train
from models.generation import GenerationConfig
from models.ofa.config import ARCHITECTURES
from ofa_module import PLUGIN_MODULES
from ofa_module.cli import PLUGIN

SWITCHES = (
    "--encoder-normalize-before --decoder-normalize-before --share-decoder-input-output-embed --share-all-embeddings "
    "--layernorm-embedding --patch-layernorm-embedding --code-layernorm-embedding --add-type-embedding --scale-attn "
    "--scale-fc --scale-heads --disable-entangle"
)
# What the released stage-1 script passes.
STAGE1 = (
    "../../dataset/caption_data/caption_stage1_train.tsv,../../dataset/caption_data/caption_val.tsv "
    "--selected-cols=0,4,2 --bpe-dir=../../utils/BPE --user-dir=../../ofa_module "
    "--restore-file=../../checkpoints/ofa_large.pt "
    "--reset-optimizer --reset-dataloader --reset-meters --save-dir=./stage1_checkpoints/2_0.06_2500 --task=caption "
    "--arch=ofa_large --criterion=adjust_label_smoothed_cross_entropy --label-smoothing=0.1 "
    "--batch-size=8 --update-freq=4 "
    f"{SWITCHES} --encoder-drop-path-rate=0.1 --decoder-drop-path-rate=0.1 --dropout=0.1 --attention-dropout=0.0 "
    "--resnet-drop-path-rate=0.0 --weight-decay=0.01 --optimizer=adam --adam-betas=(0.9,0.999) --adam-eps=1e-08 "
    "--clip-norm=1.0 --lr-scheduler=polynomial_decay --lr=1e-5 --max-epoch=2 --warmup-ratio=0.06 --log-format=simple "
    "--log-interval=10 --fixed-validation-seed=7 --no-epoch-checkpoints --keep-best-checkpoints=1 --save-interval=1 "
    "--validate-interval=1 --save-interval-updates=500 --validate-interval-updates=500 --eval-cider "
    "--eval-cider-cached-tokens=../../dataset/caption_data/cider_cached_tokens/coco-valid-words.p "
    '--eval-args={"beam":5,"max_len_b":16,"no_repeat_ngram_size":3} --best-checkpoint-metric=cider '
    "--maximize-best-checkpoint-metric --max-src-length=80 --max-tgt-length=20 --find-unused-parameters "
    "--freeze-encoder-embedding --freeze-decoder-embedding --patch-image-size=480 --drop-worst-ratio=0.2 "
    "--drop-worst-after=2500 --fp16 --fp16-scale-window=512 --num-bins=1000 --num-workers=0"
).split(" ")
# What the released evaluation script passes.
EVALUATION = (
    "../../dataset/caption_data/caption_test.tsv --path=../../checkpoints/caption_large_best_clean.pt "
    "--user-dir=../../ofa_module --task=caption --batch-size=16 --log-format=simple --log-interval=10 --seed=7 "
    "--gen-subset=test --results-path=../../results/caption --beam=5 --max-len-b=16 --no-repeat-ngram-size=3 --fp16 "
    "--num-workers=0 --unnormalized --temperature=1.0"
).split(" ") + [
    '--model-overrides={"data":"../../dataset/caption_data/caption_test.tsv","bpe_dir":"../../utils/BPE",'
    '"eval_cider":False,"selected_cols":"1,4,2"}'
]


def test_released_training_command():
    cfg = train.parse_args(["--local_rank=0", *STAGE1])
    assert cfg.model._name == "ofa_large" and cfg.model.encoder_layers == 12 and cfg.model.scale_attn
    assert cfg.model.freeze_encoder_embedding and cfg.model.encoder_drop_path_rate == 0.1 and cfg.model.dropout == 0.1
    assert cfg.task._name == "caption" and cfg.task.eval_cider and cfg.task.selected_cols == "0,4,2"
    assert cfg.task.max_tgt_length == 20 and cfg.task.patch_image_size == 480
    assert cfg.criterion.label_smoothing == 0.1 and cfg.criterion.drop_worst_ratio == 0.2
    assert cfg.lr_scheduler.warmup_ratio == 0.06 and list(cfg.optimization.lr) == [1e-5]
    assert cfg.optimization.clip_norm == 1.0 and list(cfg.optimization.update_freq) == [4]
    assert cfg.optimizer.adam_betas in ("(0.9,0.999)", "(0.9, 0.999)") and cfg.optimizer.weight_decay == 0.01
    assert cfg.common.fp16 and cfg.common.fp16_scale_window == 512
    assert cfg.checkpoint.restore_file.endswith("ofa_large.pt") and cfg.checkpoint.reset_optimizer
    assert cfg.checkpoint.best_checkpoint_metric == "cider" and cfg.checkpoint.maximize_best_checkpoint_metric


def test_released_evaluation_command():
    cfg = evaluate.parse_args(["--local-rank=0", *EVALUATION])
    assert cfg.generation.beam == 5 and cfg.generation.max_len_b == 16 and cfg.generation.no_repeat_ngram_size == 3
    assert cfg.common_eval.path.endswith("caption_large_best_clean.pt") and cfg.dataset.batch_size == 16
    assert cfg.common.seed == 7 and cfg.common.fp16 and cfg.generation.unnormalized
    assert not any(cfg.evaluation.values())


def test_switches_of_the_architecture_cannot_be_turned_off_and_scales_are_off_unless_given():
    left_out = [flag for flag in STAGE1 if flag not in SWITCHES.split(" ")]
    model = train.parse_args(left_out).model
    assert model.encoder_normalize_before and model.layernorm_embedding and model.add_type_embedding
    assert not (model.scale_attn or model.scale_fc or model.scale_heads or model.disable_entangle)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_size_is_an_architecture(arch):
    model = train.parse_args([*STAGE1, f"--arch={arch}"]).model
    for name, value in ARCHITECTURES[arch].items():
        assert model[name] == value, name


def test_bfloat16_is_not_a_tpu_and_the_cpu_talks_gloo(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    cfg = train.parse_args([flag for flag in STAGE1 if flag != "--fp16"] + ["--bf16", "--cpu"])
    assert cfg.common.bf16 and not cfg.common.tpu
    assert cfg.distributed_training.distributed_world_size == 2 and cfg.distributed_training.distributed_rank == 1
    assert cfg.distributed_training.device_id == 1


@pytest.mark.parametrize(
    "bad", ["--arch=ofa_giant", "--no-such-flag", "--batch-size=many", "--task=nothing", "--criterion=none"]
)
def test_bad_flags_end_the_program(bad, capsys):
    with pytest.raises(SystemExit) as caught:
        train.parse_args([*STAGE1, bad])
    assert caught.value.code not in (0, None)
    assert bad.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--lr=x", "argument --lr: invalid list of numbers value: 'x'"),
        ("--update-freq=1,b", "argument --update-freq: invalid list of numbers value: '1,b'"),
        ("--max-epoch=-1", "--max-epoch -1: choose a number of at least 0."),
        ("--max-update=-5", "--max-update -5: choose a number of at least 0."),
    ],
)
def test_numbers_that_make_no_sense(flag, words, capsys):
    with pytest.raises(SystemExit):
        train.parse_args([*STAGE1, flag])
    assert capsys.readouterr().err.endswith(f"error: {words}\n")


def test_processes_that_are_not_started_are_named(caplog):
    assert train.parse_args([*STAGE1, "--distributed-world-size=2"]).distributed_training.distributed_world_size == 1
    assert "--distributed-world-size=2 without a GPU: training in one process; start several" in caplog.text


def test_two_precisions_are_one_sentence(capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_args([*EVALUATION, "--bf16"])
    assert "--fp16 and --bf16 cannot be combined: leave one out." in capsys.readouterr().err


def test_a_user_dir_that_is_a_file_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as caught:
        evaluate.parse_args([*EVALUATION, f"--user-dir={__file__}"])
    assert caught.value.code == 2 and "test_flags.py is a file: name the folder of a plugin" in capsys.readouterr().err


@pytest.mark.parametrize("program", [train, evaluate], ids=["train", "evaluate"])
@pytest.mark.parametrize("words", [["--user-dir=../../module"], ["--user-dir", "../../module"], ["--user-dir="]])
def test_a_plugin_that_is_not_there_is_ours_with_a_warning(program, words, caplog):
    argv = [word for word in (STAGE1 if program is train else EVALUATION) if not word.startswith("--user-dir")]
    cfg = program.parse_args([*argv, *words])
    assert cfg.common.user_dir == str(PLUGIN) and cfg.task._name == "caption"
    assert f"does not exist: using this repository's {PLUGIN}" in caplog.text


def test_a_plugin_that_is_there_is_theirs(tmp_path, caplog):
    (tmp_path / "their_plugin").mkdir()
    (tmp_path / "their_plugin" / "__init__.py").write_text("LOADED = True\n")
    argv = [word for word in EVALUATION if not word.startswith("--user-dir")]
    cfg = evaluate.parse_args([*argv, f"--user-dir={tmp_path}/their_plugin"])
    assert cfg.common.user_dir == f"{tmp_path}/their_plugin" and sys.modules["their_plugin"].LOADED
    assert not caplog.text


@pytest.mark.parametrize("cwd", [".", "run_scripts/caption", "/"])
def test_plugin_path_as_scripts_spell_it(cwd, monkeypatch):
    monkeypatch.chdir(cwd)
    assert os.path.isdir(train.parse_args(STAGE1).common.user_dir)


@pytest.mark.parametrize(
    "config",
    [
        *(dc for name, dc in TASK_DATACLASS_REGISTRY.items() if dc.__module__.startswith("tasks.")),
        *(dc for dc in MODEL_DATACLASS_REGISTRY.values() if dc.__module__.startswith("models.fairseq")),
        *(dc for dc in CRITERION_DATACLASS_REGISTRY.values() if dc.__module__.startswith("criterions.")),
        evaluate.EvaluationFlags,
        train.TrainingFlags,
        GenerationConfig,
    ],
    ids=lambda dc: dc.__name__,
)
def test_every_flag_has_help(config):
    for option in dataclasses.fields(config):
        inherited = isinstance(option.default, str) and option.default.startswith("${")
        assert option.metadata.get("help") or option.name == "_name" or inherited, option.name


def test_everything_registered_is_listed():
    assert {"models.fairseq_ofa", "tasks.caption"} <= set(PLUGIN_MODULES)
