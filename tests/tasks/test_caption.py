"""The captioning task: row -> batch -> loss -> caption -> record and score, on a tiny model."""

from pathlib import Path

import pytest
import torch
from fairseq import tasks
from fairseq.logging import metrics

import train
from digits.__main__ import main as build_demo
from metrics.cider import CiderD
from metrics.sums import bleu, bleu_sums
from models.generation import GenerationConfig
from tests.sources import write_csv, write_jsonl, write_parquet
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
ARGS = [
    "--task=caption", "--arch=ofa_demo", "--criterion=adjust_label_smoothed_cross_entropy", "--optimizer=adam",
    "--lr-scheduler=fixed", "--selected-cols=1,4,2", "--patch-image-size=48", "--code-dict-size=0", "--num-bins=0",
    "--batch-size=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert build_demo([str(folder), "--train=9", "--val=6", "--test=2", "--size=48"]) == 0
    return folder


@pytest.fixture
def make(demo):
    """Task, model, criterion and the first validation batch for some flags."""

    def build(*flags, data="{0}/caption_stage1_train.tsv,{0}/caption_val.tsv"):
        cfg = train.parse_args([data.format(f"{demo}/caption_data"), f"--bpe-dir={ROOT}/digits/BPE", *ARGS, *flags])
        task = tasks.setup_task(cfg.task)
        torch.manual_seed(0)
        model = task.build_model(cfg.model)
        task.load_dataset("valid")
        batch = next(task.get_batch_iterator(task.dataset("valid"), max_sentences=4).next_epoch_itr(shuffle=False))
        return task, model, task.build_criterion(cfg.criterion), batch

    return build


def test_validation_logs_what_evaluate_sums(make):
    task, model, criterion, batch = make("--eval-cider", '--eval-args={"beam":2,"max_len_b":6}')
    loss, size, logged = task.valid_step(batch, model, criterion)
    result = task.evaluate([model], batch, GenerationConfig(beam=2, max_len_b=6))
    assert (logged["_cider_0"], logged["_cider_1"]) == result.sums["cider"] and logged["_cider_1"] == 4
    with metrics.aggregate(new_root=True) as shown:
        task.reduce_metrics([{**logged, "loss": loss}, {**logged, "loss": loss}], criterion)
    assert shown.get_smoothed_value("cider") == pytest.approx(logged["_cider_0"] / 4, abs=5e-4)
    assert size == logged["sample_size"]


@pytest.mark.parametrize("more", [[], ["--eval-cider"]])
def test_bleu_is_of_all_captions_together(make, more, monkeypatch):
    task, model, criterion, batch = make("--eval-bleu", '--eval-args={"beam":2,"max_len_b":6}', *more)
    loss, _, logged = task.valid_step(batch, model, criterion)
    assert ("_cider_0" in logged) == bool(more)
    said = [record["caption"] for record in task.evaluate([model], batch, task.validation_config).records]
    true = [captions[0] for captions in batch["references"]]
    assert tuple(logged[f"_bleu_{i}"] for i in range(10)) == bleu_sums(said, batch["references"])
    texts = iter(true)
    monkeypatch.setattr(task.vocab, "decode", lambda tokens: next(texts))
    perfect = task.valid_step(batch, model, criterion)[2]
    with metrics.aggregate(new_root=True) as shown:
        task.reduce_metrics([{**logged, "loss": loss}, {**perfect, "loss": loss}], criterion)
    expected = round(bleu(bleu_sums(said + true, [*batch["references"], *batch["references"]])), 2)
    assert shown.get_smoothed_value("bleu") == expected > 1
    assert bleu([perfect[f"_bleu_{i}"] for i in range(10)]) == pytest.approx(100)


def test_one_record_per_row_with_its_image_id(make, demo):
    task, model, _, batch = make()
    result = task.evaluate([model], batch, GenerationConfig(beam=1, max_len_b=4))
    rows = (demo / "caption_data/caption_val.tsv").read_text().splitlines()[:4]
    assert [record["image_id"] for record in result.records] == [int(row.split("\t")[1]) for row in rows]
    assert result.references == [[row.split("\t")[2]] for row in rows] and not result.sums


def test_perfect_captions_score_ten(make):
    task, *_ = make("--eval-cider")
    captions = [task.dataset("valid")[i]["references"] for i in range(6)]
    assert task.cider.score([refs[0] for refs in captions], captions)[0] == pytest.approx(10.0)


def test_given_document_frequencies_are_used(make):
    task, *_ = make("--eval-cider", "--eval-cider-cached-tokens=tests/golden/cider_df.p")
    golden = CiderD.from_pickle("tests/golden/cider_df.p")
    pair = ["a red seven at the top"], [["a red seven at the bottom"]]
    assert task.cider.score(*pair)[0] == golden.score(*pair)[0]


def test_self_critical_training_keeps_all_captions_and_samples_as_told(make):
    task, *_ = make("--scst", '--scst-args={"beam":3,"max_len_b":7}', "--constraint-range=4,20", "--max-tgt-length=2")
    config = task.scst_config
    assert (config.beam, config.max_len_b, config.constraint_range) == (3, 7, "4,20")
    task.load_dataset("train")
    captions = [task.dataset("train")[i]["references"] for i in range(9)]
    assert list(task.training_references()) == captions and len(captions[0][0].split()) > 2
    assert make()[0].scst_config is None


def test_no_generation_without_eval_cider(make):
    task, model, criterion, batch = make()
    assert "_cider_0" not in task.valid_step(batch, model, criterion)[2]


def test_training_files_take_turns_and_rows_are_shuffled_anew(make, demo):
    data = "{0}/caption_stage1_train.tsv,{0}/caption_test.tsv,{0}/caption_val.tsv"
    task, *_ = make(data=data)
    assert task.has_sharded_data("train")
    sizes = []
    for epoch in (1, 2, 3):
        task.load_dataset("train", epoch=epoch)
        sizes.append(len(task.dataset("train")))
    assert sizes == [9, 2, 9]
    orders = [
        [i for b in task.get_batch_iterator(task.dataset("train"), max_sentences=4, epoch=e).frozen_batches for i in b]
        for e in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2]) == list(range(9))
    task.shuffle_rows = False
    plan = task.get_batch_iterator(task.dataset("train"), max_sentences=4, epoch=2).frozen_batches
    assert [i for b in plan for i in b] == list(range(9))


def test_columns_of_later_files_are_looked_at_first(make, tmp_path):
    rows = [{"image": "a.png", "caption": "a cat"}]
    other = write_jsonl(tmp_path / "b.jsonl", [{"photo": "a.png", "caption": "a cat"}])
    paths = f"{write_csv(tmp_path / 'a.csv', rows)},{write_parquet(tmp_path / 'a.parquet', rows)}"
    make(data=paths + ",{0}/caption_val.tsv")[0].load_dataset("train")
    with pytest.raises(UserError, match="b.jsonl has no column 'image'.*the same for all files.*'photo', 'caption'"):
        make(data=f"{paths},{other},{{0}}/caption_val.tsv")[0].load_dataset("train")


@pytest.mark.parametrize(
    ("flags", "words"), [(["--eval-cider", "--eval-args={"], "--eval-args"), (["--bpe-dir="], "--bpe-dir")]
)
def test_bad_options(make, flags, words):
    with pytest.raises(UserError, match=words):
        task, model, criterion, batch = make(*flags)
        task.valid_step(batch, model, criterion)
