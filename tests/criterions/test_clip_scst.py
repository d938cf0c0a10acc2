"""Self-critical text-to-image training: scores, loss against a plain computation, names in the log, mistakes."""

import copy
from functools import cache

import pytest
import torch
from fairseq import tasks, utils
from fairseq.logging import metrics

import train
from models.clip import CLIP
from models.vqgan import VQGAN, to_pil
from ofa_module.engine.trainer import OFATrainer
from tests.tasks.image_gen_world import ARGS, CAPTIONS, CODES, COUNT, FIRST, write_world
from utils.errors import UserError

RANGE = f"--constraint-range={FIRST},{FIRST + CODES}"
SCST = ["--criterion=clip_scst_reward_criterion", "--scst", '--scst-args={"beam":3,"sampling_topk":20}', RANGE]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@cache
def untrained():
    cfg = train.parse_args(["x.tsv", *ARGS, "--dropout=0.0"])
    torch.manual_seed(0)
    return tasks.setup_task(cfg.task).build_model(cfg.model)


@pytest.fixture
def make(world):
    """Configuration, task, model, criterion and a training batch of two prompts."""
    folder, models = world

    def build(*flags):
        cfg = train.parse_args([f"{folder}/rows.tsv", *ARGS, *SCST, *models.values(), *flags])
        task = tasks.setup_task(cfg.task)
        criterion = task.build_criterion(cfg.criterion)
        task.load_dataset("train")
        model = copy.deepcopy(untrained())
        return cfg, task, model, criterion, task.dataset("train").collater([task.dataset("train")[i] for i in (0, 1)])

    return build


def test_scores_are_clips(make, world):
    _, _, model, criterion, batch = make()
    folder, _ = world
    torch.manual_seed(3)
    found = criterion.hypotheses(model, batch)
    assert [len(own) for own in found] == [3, 3] and all(len(t) == COUNT + 1 for own in found for t in own)
    vqgan, clip = VQGAN.load(folder / "last.ckpt", folder / "model.yaml"), CLIP.load(folder / "ViT-B-16.pt")
    scores = criterion.scores(batch, [found[0], found[1][:2]]).tolist()
    pairs = [(tokens, CAPTIONS[0]) for tokens in found[0]] + [(tokens, CAPTIONS[1]) for tokens in found[1][:2]]
    for score, (tokens, caption) in zip(scores, pairs, strict=True):  # the slash of the caption counts here
        assert tokens[-1] == 2
        (image,) = to_pil(vqgan.decode(tokens[None, :-1] - FIRST))
        assert score == pytest.approx(2.5 * clip.similarity([image], [caption]).item(), abs=1e-5)
    assert len(set(scores)) > 2


def test_loss_equals_the_plain_computation(make):
    _, _, model, criterion, batch = make()
    model.train()
    torch.manual_seed(3)
    found = criterion.hypotheses(model, batch)
    criterion.hypotheses = lambda model, sample: found
    scores = criterion.scores(batch, found).view(2, 3)
    rewards = (scores - (scores.sum(1, keepdim=True) - scores) / 2).flatten()
    loss, size, logged = criterion(model, batch)
    target = torch.stack([tokens for own in found for tokens in own])  # (6, n + 1)
    previous = torch.cat([torch.zeros(6, 1, dtype=torch.long), target[:, :-1]], dim=1)
    source, masks = batch["net_input"]["src_tokens"], batch["net_input"]["code_masks"]
    logits = model(source.repeat_interleave(3, 0), previous, code_masks=masks.repeat_interleave(3))[0]
    ids = torch.arange(logits.size(-1))
    log_probs = logits.masked_fill((ids > 3) & (ids < FIRST), -torch.inf).log_softmax(-1)
    expected = -(rewards[:, None] * log_probs.gather(2, target[..., None])[..., 0]).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-4)
    assert size == logged["ntokens"] == 6 * (COUNT + 1) and logged["nsentences"] == 6
    assert logged["score"] == pytest.approx(scores.sum().item(), rel=1e-5)


def test_reward_and_score_of_the_best_image_have_names_of_their_own(make):
    _, task, model, criterion, batch = make('--eval-args={"beam":2}')
    loss, _, logged = task.valid_step(batch, model, criterion)
    with metrics.aggregate(new_root=True) as shown:
        task.reduce_metrics([{**logged, "loss": loss}] * 2, criterion)
    values = shown.get_smoothed_values()
    assert values["clip_reward"] == pytest.approx(logged["score"] / 6, abs=1e-3)
    assert values["score"] == pytest.approx(logged["_score_0"] / 2, abs=1e-3)


def test_updates_of_the_trainer_repeat(make, tmp_path):
    states = []
    for _ in range(2):
        cfg, task, model, criterion, _ = make(f"--save-dir={tmp_path}", "--clip-norm=1.0")
        utils.set_torch_seed(cfg.common.seed)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        trainer = OFATrainer(cfg, task, model, criterion)
        batches = list(trainer.get_train_iterator(1).next_epoch_itr(shuffle=False))
        with metrics.aggregate(new_root=True) as logged:
            trainer.train_step(batches[:1])
        states.append(model.state_dict())
    assert trainer.get_num_updates() == 1 and all(torch.equal(value, states[0][n]) for n, value in states[1].items())
    assert any(not torch.equal(value, start[name]) for name, value in states[0].items())
    assert logged.get_smoothed_values()["reward_std"] > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--clip-model-path="], "--clip-model-path is missing"),
        (["--vqgan-config-path=nowhere.yaml"], "There is no nowhere.yaml"),
        (['--scst-args={"beams":3}'], "--scst-args: there is no decoding option 'beams'"),
        (["--task=caption"], "needs --task=image_gen"),
    ],
)
def test_mistakes_are_told_before_training(make, flags, words, world):
    if "--task=caption" in flags:
        argv = [word for word in [*ARGS, *SCST] if not word.startswith(("--task", "--code-image-size"))]
        cfg = train.parse_args([f"{world[0]}/rows.tsv", *argv, *flags, '--scst-args={"beam":3}'])
        with pytest.raises(UserError, match=words):
            tasks.setup_task(cfg.task).build_criterion(cfg.criterion)
        return
    with pytest.raises(UserError, match=words):
        make(*flags)
