"""The planned memory is what an update takes; --auto-batch chooses by it and keeps the rows of an update."""

import logging
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from fairseq import tasks

import train
from benchmarks.memory_plan import configuration, counted, planned
from data.tasks import TASKS
from digits.__main__ import main as build_demo
from ofa_module.engine import plan
from ofa_module.engine.example_rows import example_batch
from ofa_module.engine.plan import MARGIN, Planner, choose_batch
from ofa_module.engine.storages import LiveStorages, like_gpu
from tests.programs import ROOT

SMALL = ("--encoder-layers=1", "--decoder-layers=1")
ARGV = [
    "none.tsv,neither.tsv", "--arch=ofa_demo", f"--bpe-dir={ROOT}/digits/BPE", "--optimizer=adam", "--lr=1e-3",
    "--criterion=adjust_label_smoothed_cross_entropy", "--patch-image-size=48", "--code-dict-size=1024",
    "--num-bins=64", *SMALL,
]  # fmt: skip


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--store-ema", "--update-freq=2", "--checkpoint-activations", "--freeze-encoder-embedding"),
        ("--bf16", "--memory-efficient-bf16", "--store-ema", "--ema-fp32"),
    ],
    ids=["plain", "ema, two batches, checkpoints", "half weights"],
)
def test_the_plan_is_what_an_update_takes(flags):
    setting = ("ofa_demo", 96, 8, (*SMALL, *flags))
    assert planned(*setting) == pytest.approx(counted(*setting), rel=0.02)


def test_parts_of_the_plan():
    cfg = configuration("ofa_demo", 48, 4, (*SMALL, "--store-ema"))
    found = Planner(cfg, on_gpu=False).plan(4)
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    trained = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    assert 0.9 * trained < found.gradients < trained  # a captioner's positions of image codes have none
    assert found.optimizer == 2 * found.gradients
    assert found.ema == found.parameters >= sum(4 * p.numel() for p in model.parameters())
    assert found.parameters + found.optimizer + found.ema < found.total
    assert found.total <= found.parameters + found.optimizer + found.ema + found.gradients + found.activations


def test_a_gpu_plans_layers_that_are_computed_anew():
    rows = [Planner(configuration("ofa_demo", 96, 4, (*SMALL, "--bf16", *more)), on_gpu=True).plan(4)
            for more in ((), ("--checkpoint-activations",))]  # fmt: skip
    assert 0 < rows[1].activations < rows[0].activations


def test_live_storages_are_counted_once_and_forgotten():
    with LiveStorages(fake=False) as live:
        a = torch.ones(1000)
        view, b = a[:10], a + 1
        assert live.now == 8000
        del a
        assert live.now == 8000  # the view holds it
        del b, view
    assert (live.now, live.peak) == (0, 8000)


def test_like_a_gpu():
    x = torch.randn(2, 4, 64, requires_grad=True)
    with like_gpu(), torch.autocast("cpu", torch.bfloat16):
        assert F.layer_norm(x.bfloat16(), (64,)).dtype == torch.float32
        assert F.dropout(x, 0.5, training=False) is x and F.dropout(x, 0.0) is x
        dropped = F.dropout(x, 0.5)
    assert dropped.grad_fn.name() == "NativeDropoutBackward0"  # which keeps a byte per element


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_an_example_without_data(name):
    prompts = ["--prompt-type=prev_output"] if name in ("vqa_gen", "snli_ve", "rte") else []
    cfg = train.parse_args([*ARGV, f"--task={name}", *prompts])
    task = tasks.setup_task(cfg.task)
    batch = example_batch(task, 3)
    source = batch["net_input"]["src_tokens"]
    assert len(source) == 3 and batch["target"].shape == batch["net_input"]["prev_output_tokens"].shape
    assert ("patch_images" in batch["net_input"]) == ("image" in TASKS[name].columns)
    if name not in ("caption", "image_classify"):  # whose prompts are fixed
        assert source.size(1) > cfg.task.max_src_length
    if name == "image_gen":
        assert batch["target"].size(1) == (cfg.task.code_image_size // 8) ** 2 + 1
    if task.answers:
        assert len(batch["constraint_ids"])


def test_texts_are_no_longer_than_the_model_takes():
    cfg = train.parse_args([*ARGV, "--task=mnli", "--max-src-length=900"])
    assert 500 < example_batch(tasks.setup_task(cfg.task), 1)["net_input"]["src_tokens"].size(1) <= 1024


def test_the_flag_prints_and_ends(capsys, tmp_path):
    train.main([*ARGV, "--task=vqa_gen", "--batch-size=2", "--plan", f"--save-dir={tmp_path}/save"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ofa_demo, an update of 2 rows, 48 px, float32") and lines[1].split() == ["CPU", "GPU"]
    names = [line.split()[0] for line in lines[2:-1]]
    assert names == ["parameters", "gradients", "optimizer", "ema", "activations", "total"]
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        ((), "--batch-size is missing"),
        (("--batch-size=2", "--criterion=scst_reward_criterion"), "cannot be planned"),
        (("--batch-size=2", "--patch-image-size=0"), "patch_image_size is 0"),
        (("--batch-size=2", "--encoder-embed-dim=96"), "must be equal"),
        (("--batch-size=2", "--max-source-positions=4"), "the source has 8 tokens and the model positions for 4"),
    ],
)
def test_bad_input_is_one_sentence(flags, said, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main([*ARGV, "--task=caption", "--plan", *flags])
    error = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and said in error and len(error.splitlines()) == 1


@pytest.fixture(scope="module")
def planner():
    """Of a command line of 8 rows: what it is asked for again and again, it plans once."""
    planner = Planner(train.parse_args([*ARGV, "--task=caption", "--batch-size=8"]), on_gpu=False)
    planner.plan = cache(planner.plan)
    return planner


@pytest.fixture(scope="module")
def totals(planner):
    """Batch size -> planned total, of the first batch size of a command line of 8 rows and of smaller ones."""
    return {rows: planner.plan(rows, many=True if rows < 8 else None).total for rows in (1, 2, 4, 8)}


@pytest.fixture
def planned_once(planner, monkeypatch):
    """Command lines that differ in nothing a plan is about share one."""
    monkeypatch.setattr(plan, "Planner", lambda *_: planner)


@pytest.mark.parametrize("fits", [1, 2, 8])
def test_the_largest_batch_that_fits(fits, totals, planned_once, monkeypatch, caplog):
    monkeypatch.setattr(plan, "free_memory", lambda _: int(totals[fits] / MARGIN) + 100)
    freqs = (3, 1) if fits == 2 else (1,)
    cfg = train.parse_args([*ARGV, "--task=caption", "--batch-size=8", f"--update-freq={','.join(map(str, freqs))}"])
    with caplog.at_level(logging.INFO):
        choose_batch(cfg)
    assert (cfg.dataset.batch_size, cfg.dataset.batch_size_valid) == (fits, fits)
    assert list(cfg.optimization.update_freq) == [freq * 8 // fits for freq in freqs]
    (line,) = (record.getMessage() for record in caplog.records if "--auto-batch" in record.getMessage())
    assert f"--batch-size={fits} --update-freq={','.join(str(freq * 8 // fits) for freq in freqs)}, since" in line
    counts = dict.fromkeys((8, fits))
    takes = ", ".join(f"{totals[count] / 2**20:,.0f} MiB with {count}" for count in counts)
    assert f"since an update takes {takes} rows and " in line


def test_a_row_that_does_not_fit_is_refused(totals, planned_once, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(plan, "free_memory", lambda _: int(totals[1] / MARGIN) - 2**20)
    with pytest.raises(SystemExit):
        train.main([*ARGV, "--task=caption", "--batch-size=8", "--auto-batch", "--plan", f"--save-dir={tmp_path}"])
    assert "An update of one row takes" in (said := capsys.readouterr().err) and len(said.splitlines()) == 1


def test_a_run_resumes_with_another_choice(totals, monkeypatch, capsys, tmp_path):
    data = tmp_path / "demo"
    assert build_demo([str(data), "--train=24", "--val=4", "--test=2", "--size=48"]) == 0
    files = f"{data}/caption_data/caption_stage1_train.tsv,{data}/caption_data/caption_val.tsv"
    argv = [
        files, *ARGV[1:], "--task=caption", "--selected-cols=0,4,2", "--batch-size=8", "--auto-batch", "--max-epoch=1",
        "--save-interval-updates=1", "--num-workers=0", f"--save-dir={tmp_path}/save", "--disable-validation",
    ]  # fmt: skip
    said = []
    for free, updates in ((totals[2], 1), (2**40, 3)):
        monkeypatch.setattr(plan, "free_memory", lambda _, free=free: int(free / MARGIN) + 100)
        train.main([*argv, f"--max-update={updates}"])
        said.append(capsys.readouterr().out)
    assert "batch      8 rows: 2 x 1 processes x 4" in said[0] and "done: 1 updates" in said[0]
    assert "16 rows of epoch 1 are left: 1 processes read them in batches of 8" in said[1]
    assert "batch      8 rows: 8 x 1 processes x 1" in said[1] and "done: 3 updates" in said[1]
