"""The text-to-image task: row -> batch -> loss -> images -> record, score and files, on tiny models."""

import base64
import io
import json
import runpy
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.logging import metrics
from PIL import Image

import evaluate
import train
from models.clip import CLIP
from models.generation import GenerationConfig
from tests.programs import run
from tests.tasks.image_gen_world import ARGS, CAPTIONS, CODES, COUNT, FIRST, SIDE, write_world
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
BEAM = '--eval-args={"beam":3,"sampling_topk":20}'  # as released: no "sampling"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with rows and models, and the models' flags."""
    return write_world(tmp_path_factory.mktemp("world"))


@cache
def network(codes):
    """Random weights; no test changes them."""
    torch.manual_seed(0)
    cfg = train.parse_args(["x.tsv", *ARGS, f"--code-dict-size={codes}"])
    return tasks.setup_task(cfg.task).build_model(cfg.model).eval()


@pytest.fixture
def make(world):
    """Task, model and criterion for some flags, and the first four rows as a batch."""
    folder, models = world

    def build(*flags, files=("vqgan-model-path", "vqgan-config-path", "clip-model-path"), rows="rows.tsv"):
        argv = [f"{folder}/{rows}", *ARGS, *(models[name] for name in files), *flags]
        cfg = train.parse_args(argv)
        task = tasks.setup_task(cfg.task)
        model = network(task.cfg.code_dict_size)
        criterion = task.build_criterion(cfg.criterion)
        task.load_dataset("valid")
        dataset = task.dataset("valid")
        return task, model, criterion, dataset.collater([dataset[i] for i in range(min(4, len(dataset)))])

    return build


def config_of(task, **options):
    return GenerationConfig(**{"beam": 3, **options, **task.generation_options})


def part(task, rows):
    dataset = task.dataset("valid")
    return dataset.collater([dataset[i] for i in rows])


def test_loss_of_codes_and_score_of_validation(make, tmp_path):
    task, model, criterion, batch = make(BEAM, f"--gen-images-path={tmp_path}")
    torch.manual_seed(7)
    loss, size, logged = task.valid_step(batch, model, criterion)
    assert size == logged["sample_size"] == 4 * (COUNT + 1) and bool(loss.isfinite())
    torch.manual_seed(7)
    result = task.evaluate([model], batch, task.validation_config)
    assert (logged["_score_0"], logged["_score_1"]) == result.sums["score"] and logged["_score_1"] == 4
    with metrics.aggregate(new_root=True) as shown:
        task.reduce_metrics([{**logged, "loss": loss}] * 2, criterion)
    assert shown.get_smoothed_value("score") == pytest.approx(logged["_score_0"] / 4, abs=5e-4)
    config = task.validation_config
    assert (config.sampling, config.gen_code, config.sampling_topk, config.min_len) == (True, True, 20, COUNT)


def test_best_image_by_clip_is_kept_under_its_id(make, world, tmp_path):
    task, model, _, batch = make(f"--gen-images-path={tmp_path}")
    torch.manual_seed(1)
    result = task.evaluate([model], batch, config_of(task))
    clip = CLIP.load(world[0] / "ViT-B-16.pt")
    for row, record in enumerate(result.records):
        assert record["sample_id"] == f"id{row}" and record["caption"] == CAPTIONS[row]
        assert record["image"] == f"top1/id{row}.png"
        images = [Image.open(tmp_path / f"all_results/id{row}_{rank}.png") for rank in range(3)]
        scores = clip.similarity(images, [CAPTIONS[row].replace("/", "")])[:, 0]
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        assert record["score"] == pytest.approx(scores[0].item(), abs=1e-5)
        best = Image.open(tmp_path / record["image"])
        assert best.tobytes() == images[0].tobytes() and (best.mode, best.size) == ("RGB", (SIDE, SIDE))
    assert result.sums["score"] == (pytest.approx(sum(r["score"] for r in result.records)), 4.0)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4 * 4 and not [path for path in files if path.suffix != ".png"]
    assert all(confidence["log_prob"] < 0 for confidence in result.confidences)


def test_without_clip_the_first_sample_is_the_image(make, world, tmp_path):
    files = ("vqgan-model-path", "vqgan-config-path")
    task, model, _, batch = make(f"--gen-images-path={tmp_path}", files=files)
    torch.manual_seed(1)
    result = task.evaluate([model], batch, config_of(task))
    assert not result.sums and [record["score"] for record in result.records] == [None] * 4
    with_clip = make()[0]
    torch.manual_seed(1)
    other = with_clip.evaluate([model], batch, config_of(with_clip))
    likely = [confidence["log_prob"] for confidence in result.confidences]
    chosen = [confidence["log_prob"] for confidence in other.confidences]
    assert all(a >= b for a, b in zip(likely, chosen, strict=True)) and likely != chosen
    assert (tmp_path / "all_results/id0_2.png").exists() and other.records[0]["image"] is None


def test_draws_depend_on_seed_and_row_only(make):
    task, model, _, _ = make()

    def scores(seed, *batches):
        torch.manual_seed(seed)
        found = {}
        for rows in batches:
            records = task.evaluate([model], part(task, rows), config_of(task)).records
            found |= {record["sample_id"]: pytest.approx(record["score"], abs=1e-5) for record in records}
            torch.rand(3)  # what others draw in between changes nothing
        return {name: score.expected for name, score in found.items()}

    together = scores(5, [0, 1, 2, 3])
    assert scores(5, [3, 0], [2], [1]) == pytest.approx(together, abs=1e-5)
    assert scores(6, [0, 1, 2, 3]) != pytest.approx(together, abs=1e-5)


def test_rounds_of_samples_add_up(make, tmp_path):
    task, model, _, batch = make("--sampling-times=2", f"--gen-images-path={tmp_path}")
    torch.manual_seed(1)
    task.evaluate([model], batch, config_of(task))
    assert len(list((tmp_path / "all_results").iterdir())) == 4 * 6
    assert len({path.read_bytes() for path in (tmp_path / "all_results").glob("id0_*")}) == 6


def test_images_like_the_true_one(make, world, tmp_path):
    folder = world[0]
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (200, 30, 30)).save(file, "PNG")
    encoded, codes = base64.b64encode(file.getvalue()).decode(), " ".join(["3"] * COUNT)
    (folder / "pictures.tsv").write_text(f"a\t{encoded}\ta red square\t{codes}\n")
    flags = ["--eval-clip-method=ii_sim", f"--gen-images-path={tmp_path}"]
    task, model, _, batch = make(*flags, "--selected-cols=0,1,2,3", rows="pictures.tsv")
    (record,) = task.evaluate([model], batch, config_of(task)).records
    true, clip = Image.new("RGB", (20, 20), (200, 30, 30)), CLIP.load(folder / "ViT-B-16.pt")
    drawn = Image.open(tmp_path / record["image"])
    assert record["score"] == pytest.approx(clip.image_similarity([drawn], [true]).item(), abs=1e-5)
    task, model, _, batch = make("--eval-clip-method=ii_sim")
    with pytest.raises(UserError, match="--eval-clip-method ii_sim"):
        task.evaluate([model], batch, config_of(task))


def test_nothing_is_loaded_before_an_image_is_drawn(make):
    for flags, files in (([], ()), ([BEAM], ("vqgan-model-path", "vqgan-config-path"))):
        task, model, criterion, batch = make(*flags, files=files)
        assert task.validation_config is None and "_score_0" not in task.valid_step(batch, model, criterion)[2]
        assert task._painter is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--vqgan-model-path="], "--vqgan-model-path is missing: name the file of the VQGAN's last.ckpt"),
        (
            ["--vqgan-config-path=nowhere/model.yaml"],
            "There is no nowhere/model.yaml: put the VQGAN's model.yaml there",
        ),
        (["--clip-model-path=nowhere/ViT-B-16.pt"], "There is no nowhere/ViT-B-16.pt: put OpenAI's ViT-B-16.pt there"),
        (["--eval-args={"], "--eval-args"),
        (["--eval-clip-method=best"], "--eval-clip-method best: choose ti_sim or ii_sim"),
        (["--sampling-times=0"], "--sampling-times must be a positive integer, not 0"),
        (["--constraint-range=50000,50300"], "--constraint-range 50000,50300 has ids that are not image codes"),
    ],
)
def test_mistakes_are_told_before_training(make, flags, words):
    with pytest.raises(UserError, match=words):
        make(*flags)


def test_more_codes_than_the_vqgan_has(make):
    task, model, _, batch = make(f"--code-dict-size={CODES + 1}")
    with pytest.raises(UserError, match=f"has {CODES} codes: pass --code-dict-size"):
        task.evaluate([model], batch, config_of(task))


def test_model_of_other_images_is_refused(make):
    task, model, _, batch = make()
    task.cfg.code_image_size = 64
    with pytest.raises(UserError, match="pass --code-image-size=32"):
        task.evaluate([model], batch, config_of(task))


def test_prompts_alone_are_drawn_but_not_learnt(make, world):
    (world[0] / "prompts.tsv").write_text("a\ta red seven\n")
    task, model, _, batch = make("--selected-cols=0,1", rows="prompts.tsv")
    assert task.evaluate([model], batch, config_of(task)).records[0]["sample_id"] == "a"
    with pytest.raises(UserError, match="training needs image codes"):
        task.load_dataset("train")
    task.cfg.scst = True
    task.load_dataset("train")
    assert len(task.dataset("train")) == 1


def test_two_rows_of_one_name_are_refused(make, world, tmp_path):
    (world[0] / "twice.tsv").write_text("a/b\tx\nc\tx\na_b\ty\n")
    with pytest.raises(UserError, match="lines 1 and 3: images are named by id"):
        make("--selected-cols=0,1", f"--gen-images-path={tmp_path}", rows="twice.tsv")
    make("--selected-cols=0,1", rows="twice.tsv")


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A checkpoint after two updates, through the front door, and the log of its training."""
    folder, models = world
    out = tmp_path_factory.mktemp("run")
    argv = [
        f"{folder}/rows.tsv", *ARGS, *models.values(), BEAM, f"--gen-images-path={out}/valid", "--max-update=2",
        f"--save-dir={out}", f"--log-file={out}/log.txt", "--log-format=simple", "--cpu", "--fixed-validation-seed=7",
        "--best-checkpoint-metric=score", "--maximize-best-checkpoint-metric", "--distributed-world-size=1",
        "--dropout=0.0",
    ]  # fmt: skip
    checkpoint_utils.save_checkpoint.best = 1e9  # as another training of this process would leave it
    train.main(argv)
    return out


def evaluation(world, trained, folder, *flags):
    """The released evaluation's arguments, without --sampling and --results-path, for small files."""
    overrides = {"data": f"{world[0]}/rows.tsv", "gen_images_path": str(folder)}
    return [
        f"{world[0]}/rows.tsv", f"--path={trained}/checkpoint_best.pt", "--task=image_gen", "--batch-size=1",
        "--seed=42", "--gen-subset=test", "--beam=3", "--min-len=16", "--max-len-a=0", "--max-len-b=16", "--cpu",
        "--sampling-topk=20", "--temperature=1.0", f"--model-overrides={overrides}", "--num-workers=0", *flags,
    ]  # fmt: skip


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_training_validates_by_score_and_evaluation_writes_an_index(world, trained, tmp_path):
    log = (trained / "log.txt").read_text()
    assert "valid on 'valid' subset" in log and "| score 0." in log.replace("score -0.", "score 0.")
    assert len(list((trained / "valid/top1").iterdir())) == len(CAPTIONS)
    evaluate.main(evaluation(world, trained, tmp_path / "one", "--with-scores"))
    index = json.loads((tmp_path / "one/test_predict.json").read_text())
    assert [record["sample_id"] for record in index] == [f"id{row}" for row in range(len(CAPTIONS))]
    assert all((tmp_path / "one" / record["image"]).exists() and record["log_prob"] < 0 for record in index)
    score = json.loads((tmp_path / "one/test_scores.json").read_text())["score"]
    assert score == pytest.approx(sum(record["score"] for record in index) / len(index))
    check = f"--check-submission={tmp_path}/one/test_predict.json"
    evaluate.main([*evaluation(world, trained, tmp_path / "one"), "--bpe-dir=utils/BPE", check])


def test_two_processes_draw_the_same_images(world, trained, tmp_path):
    evaluate.main(evaluation(world, trained, tmp_path / "one"))
    (tmp_path / "commands.json").write_text(json.dumps([evaluation(world, trained, tmp_path / "two")]))
    run("tests/tasks/evaluate_many.py", tmp_path / "commands.json", processes=2)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert len(one) == 2 + len(CAPTIONS) * 4 and one == two
    shutil.rmtree(tmp_path / "one")
    evaluate.main(evaluation(world, trained, tmp_path / "one", "--seed=43"))
    assert contents(tmp_path / "one") != two


def test_the_example_draws_an_image(world, trained, tmp_path, monkeypatch, capsys):
    script = str(ROOT / "run_scripts/image_gen/image_gen_example.py")
    flags = [f"--path={trained}/checkpoint_best.pt", *world[1].values(), "--samples=5", "--sheet=4"]
    flags += [f"--code-dict-size={CODES}", "--num-bins=0", "--sampling-topk=20"]
    run(script, "a red seven", *flags, f"--out={tmp_path}/1.png")

    def draw(*more):
        monkeypatch.setattr("sys.argv", [script, *flags, f"--out={tmp_path}/0.png", *more])
        monkeypatch.setattr("sys.stdin", io.StringIO("a red seven\n"))
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(script, run_name="__main__")
        return stop.value.code

    assert draw() == 0
    first, second = (Image.open(tmp_path / f"{number}.png") for number in (1, 0))
    assert first.size == (2 * SIDE, 2 * SIDE) and first.tobytes() == second.tobytes()
    assert draw("--vqgan-model-path=no.ckpt") == 2
    assert "error: There is no no.ckpt: put the VQGAN's last.ckpt there" in capsys.readouterr().err


def test_code_ids_are_the_vocabularys(make):
    task, *_ = make()
    assert task.generation_options["constraint_range"] == f"{FIRST},{FIRST + CODES}"
