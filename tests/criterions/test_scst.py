"""Self-critical training: loss and gradients against a plain computation, zero cases, real updates, bad flags."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from fairseq import tasks, utils
from fairseq.logging import metrics

import train
from criterions.scst import ScstRewardCriterion
from metrics.cider import CiderD, reward_text
from ofa_module.engine.trainer import OFATrainer
from utils.errors import UserError

DATA = "tests/golden/tsv/caption/caption_val.tsv"  # rows with several captions
ARGS = [
    DATA, "--task=caption", "--arch=ofa_demo", "--encoder-layers=1", "--decoder-layers=1", "--resnet-type=resnet10",
    "--criterion=scst_reward_criterion", "--scst", "--scst-cider-cached-tokens=", "--code-dict-size=0", "--num-bins=0",
    "--selected-cols=1,4,2", "--patch-image-size=48", "--bpe-dir=utils/BPE", "--batch-size=2", "--optimizer=adam",
    "--lr=1e-3", "--lr-scheduler=fixed", "--clip-norm=1.0", "--disable-entangle", "--num-workers=0",
]  # fmt: skip
FREQUENT = "--constraint-range=4,60"  # so that an untrained model says words of the captions: the, of, a, in
BEAMS = '--scst-args={"beam":3,"max_len_b":5,"no_repeat_ngram_size":3}'


@cache
def parse(*flags):
    return train.parse_args([*ARGS, *flags])


@cache
def untrained():
    cfg = parse()
    torch.manual_seed(0)
    return tasks.setup_task(cfg.task).build_model(cfg.model)


def make(*flags):
    """Configuration, task, model, criterion and a training batch of two images."""
    cfg = parse(*flags)
    task = tasks.setup_task(cfg.task)
    criterion = task.build_criterion(cfg.criterion)
    task.load_dataset("train")
    batch = task.dataset("train").collater([task.dataset("train")[i] for i in (0, 2)])
    return cfg, task, copy.deepcopy(untrained()), criterion, batch


class MadeUpScores(ScstRewardCriterion):
    """Scores that differ more than those of random captions: one for all, or a number made from the token ids."""

    constant = None

    def scores(self, sample, hypotheses):
        numbers = [float(tokens.sum() % 7) for own in hypotheses for tokens in own]
        if self.constant is not None:
            numbers = [self.constant] * len(numbers)
        return torch.tensor(numbers, dtype=torch.float64)


def with_made_up_scores(criterion):
    criterion.__class__ = MadeUpScores
    return criterion


def plain_loss(model, sample, hypotheses, rewards, cfg):
    """Every image repeated for each hypothesis, all logits, all log-probabilities; and the tokens that count."""
    net_input = {k: v for k, v in sample["net_input"].items() if k != "prev_output_tokens"}
    counts = torch.tensor([len(own) for own in hypotheses])
    repeated = {key: value.repeat_interleave(counts, 0) for key, value in net_input.items()}
    flat = [tokens.tolist() for own in hypotheses for tokens in own]
    width = max(map(len, flat))
    target = torch.tensor([[*tokens, *[1] * (width - len(tokens))] for tokens in flat])
    previous = torch.tensor([[0, *tokens[:-1], *[1] * (width - len(tokens))] for tokens in flat])
    logits = model(**repeated, prev_output_tokens=previous)[0]
    if cfg.constraint_range:
        start, end = map(int, cfg.constraint_range.split(","))
        ids = torch.arange(logits.size(-1))
        logits = logits.masked_fill((ids >= 4) & ((ids < start) | (ids >= end)), -torch.inf)
    chosen = logits.log_softmax(-1).gather(2, target.unsqueeze(2)).squeeze(2)
    counted = target.ne(1)
    counted[:, : cfg.ignore_prefix_size] = False
    return -(rewards.unsqueeze(1) * chosen)[counted].sum(), int(counted.sum())


@pytest.mark.parametrize("flags", [[], ["--ignore-prefix-size=1"], [FREQUENT], ["--sentence-avg", FREQUENT]])
def test_loss_and_gradients_equal_the_plain_computation(flags):
    _, _, model, criterion, sample = make(BEAMS, *flags)
    model, criterion = model.double(), with_made_up_scores(criterion)
    sample["net_input"]["patch_images"] = sample["net_input"]["patch_images"].double()
    model.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    hypotheses = criterion.hypotheses(model, sample)
    assert [len(own) for own in hypotheses] == [3, 3] and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    scores = criterion.scores(sample, hypotheses).view(2, 3)
    rewards = (scores - (scores.sum(1, keepdim=True) - scores) / 2).flatten()
    assert rewards.abs().max() > 0.5

    loss, sample_size, logged = criterion(model, sample, update_num=1)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected, counted = plain_loss(model, sample, hypotheses, rewards, criterion.cfg)
    expected.backward()

    tokens = sum(len(tokens) for own in hypotheses for tokens in own)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert sample_size == (6 if "--sentence-avg" in flags else counted)
    assert (logged["nsentences"], logged["ntokens"], logged["sample_size"]) == (6, tokens, sample_size)
    assert logged["score"] == pytest.approx(scores.sum().item())
    assert logged["squared_reward"] == pytest.approx(rewards.square().sum().item())
    assert gradients.keys() == {n for n, p in model.named_parameters() if p.grad is not None}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-6 * largest, msg=name)


def test_each_image_is_encoded_twice_whatever_the_beam():
    _, _, model, criterion, sample = make(BEAMS)
    calls = []
    model.encoder.register_forward_hook(lambda module, args, out: calls.append((out.out.size(0), module.training)))
    model.train()
    criterion(model, sample)
    assert calls == [(2, False), (2, True)]


def test_gradients_go_through_the_data_parallel_wrapper(tmp_path):
    """PyTorch's wrapper reduces gradients only if the loss's forward went through it, and finds unused parameters."""
    _, _, model, criterion, sample = make(BEAMS)
    with_made_up_scores(criterion)
    plain = copy.deepcopy(model).train()
    criterion(plain, sample)[0].backward()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True).train()
        reduced = []
        wrapped.register_comm_hook(reduced, keep)
        criterion(wrapped, sample)[0].backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len(reduced) > 0
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, msg=name)


def keep(buckets, bucket):
    """Communication hook of one process: gradients stay as they are."""
    buckets.append(bucket.index())
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def test_validation_changes_nothing_in_the_model():
    _, task, model, criterion, sample = make(BEAMS, "--eval-cider", '--eval-args={"beam":2,"max_len_b":4}')
    state = {name: value.clone() for name, value in model.state_dict().items()}
    loss, size, logged = task.valid_step(sample, model, criterion)
    assert not model.training and not loss.requires_grad and size == logged["ntokens"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with metrics.aggregate(new_root=True) as shown:
        task.reduce_metrics([{**logged, "loss": loss}] * 2, criterion)
    assert shown["score"].avg == pytest.approx(logged["score"] / 6) and "cider" in shown.get_smoothed_values()


def zero_gradient(model, criterion, sample):
    model.train()
    loss, size, logged = criterion(model, sample)
    loss.backward()
    assert loss.item() == 0 and logged["squared_reward"] == 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(bool((gradient == 0).all()) for gradient in gradients)  # NaN is not 0
    return size, logged


def test_equal_scores_give_no_gradient():
    _, _, model, criterion, sample = make(BEAMS)
    with_made_up_scores(criterion).constant = 0.1
    assert zero_gradient(model, criterion, sample)[1]["score"] == pytest.approx(0.6)


def test_single_hypothesis_gives_no_gradient():
    _, _, model, criterion, sample = make('--scst-args={"beam":1,"max_len_b":5}')
    assert zero_gradient(model, criterion, sample)[1]["nsentences"] == 2


def test_empty_hypotheses_give_no_gradient():
    """No token before end of sentence: one empty caption an image, which no reference resembles."""
    _, _, model, criterion, sample = make('--scst-args={"beam":3,"min_len":0,"max_len_b":0}')
    size, logged = zero_gradient(model, criterion, sample)
    assert size == logged["nsentences"] == 2 and logged["score"] == 0


def test_images_with_different_numbers_of_hypotheses():
    _, _, model, criterion, sample = make(BEAMS)
    with_made_up_scores(criterion)
    model.eval()  # in training, batch statistics count each image once, the plain computation once a hypothesis
    found = criterion.hypotheses(model, sample)
    criterion.hypotheses = lambda model, sample: [found[0], found[1][:2]]
    loss, size, logged = criterion(model, sample)
    scores = criterion.scores(sample, [found[0], found[1][:2]])
    first, second = scores[:3], scores[3:]
    rewards = torch.cat([first - (first.sum() - first) / 2, second - second.flip(0)])
    expected, counted = plain_loss(model, sample, [found[0], found[1][:2]], rewards, criterion.cfg)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
    assert size == counted and logged["nsentences"] == 5


def test_captions_are_scored_against_all_captions_of_their_image():
    _, task, _, criterion, sample = make(BEAMS, "--scst-cider-cached-tokens=tests/golden/cider_df.p")
    captions = ["a woman, smiling!", "an astronaut", "A cat", "the cat has green eyes."]
    tokens = [torch.tensor([*task.vocab.encode(" " + caption), 2]) for caption in captions]
    scores = criterion.scores(sample, [tokens[:1], tokens[1:]])
    references = [[reward_text(text) for text in own] for own in sample["references"]]
    assert references[0][1] == "An astronaut in an orange suit <eos>" and len(references[1]) == 5
    texts = ["a woman smiling <eos>", "an astronaut <eos>", "A cat <eos>", "the cat has green eyes <eos>"]
    golden = CiderD.from_pickle("tests/golden/cider_df.p")
    np.testing.assert_array_equal(scores, golden.score(texts, [references[0], *[references[1]] * 3])[1])
    assert scores.dtype == torch.float64 and scores[3] > scores[2] > scores[1] == 0


def test_document_frequencies_of_the_training_file():
    _, task, _, criterion, _ = make(BEAMS, "--scst-cider-cached-tokens=")
    captions = [list(map(reward_text, task.dataset("train")[i]["references"])) for i in range(6)]
    expected = CiderD.from_references(captions)
    pair = ["a cat on a cup <eos>"], [["the cat has a cup <eos>"]]
    assert criterion.cider.score(*pair)[0] == expected.score(*pair)[0] > 0


def test_step_raises_what_scored_better():
    _, _, model, criterion, sample = make(BEAMS)
    with_made_up_scores(criterion)
    model.train()
    hypotheses = criterion.hypotheses(model, sample)
    criterion.hypotheses = lambda model, sample: hypotheses
    losses = []
    for _ in range(2):
        loss, size, _ = criterion(model, sample)
        losses.append(loss.item())
        model.zero_grad()
        (loss / size).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-2 * parameter.grad
    assert losses[1] < losses[0] - 1e-4


@pytest.mark.parametrize("sampling", [BEAMS, '--scst-args={"beam":4,"max_len_b":6,"sampling":true}'])
def test_updates_of_the_trainer_repeat_bit_for_bit(sampling, tmp_path):
    """Two updates of three micro-batches; training rows are the golden ones, one to five captions an image."""
    states, logs = [], []
    for _ in range(2):
        flags = [sampling, FREQUENT, f"--save-dir={tmp_path}", "--update-freq=3"]
        cfg, task, model, criterion, _ = make(*flags)
        utils.set_torch_seed(cfg.common.seed)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        trainer = OFATrainer(cfg, task, model, criterion)
        batches = list(trainer.get_train_iterator(1).next_epoch_itr(shuffle=False))
        assert len(batches) == 3
        with metrics.aggregate(new_root=True) as logged:
            for _ in range(2):
                trainer.train_step(batches)
        states.append(model.state_dict())
        logs.append(logged.get_smoothed_values())
    assert trainer.get_num_updates() == 2 and all(torch.equal(value, states[0][n]) for n, value in states[1].items())
    changed = [name for name, value in states[0].items() if not torch.equal(value, start[name])]
    assert "decoder.embed_tokens.weight" in changed and "encoder.embed_images.conv1.weight" in changed
    shown, again = logs
    samples = 6 * criterion.sampling.beam
    assert shown["nsentences"] == samples and shown["sample_size"] == shown["ntokens"] > samples
    assert shown["score"] > 0 and shown["reward_std"] > 0 and np.isfinite(shown["gnorm"]) and shown["gnorm"] > 0
    assert shown["length"] == pytest.approx(shown["ntokens"] / samples, abs=0.01)
    assert "ppl" not in shown and "nll_loss" not in shown
    assert all(shown[key] == again[key] for key in ("loss", "score", "reward_std", "length", "gnorm"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--scst-args={beam}"], "--scst-args"),
        (["--scst-cider-cached-tokens=nowhere.p"], "nowhere.p"),
        (["--ignore-prefix-size=-1"], "--ignore-prefix-size"),
        (["--constraint-range=9"], "--constraint-range"),
        (["--task=snli_ve", "--prompt-type=none", "--selected-cols=0,2,3,4,5"], "--scst"),
    ],
)
def test_bad_options_are_one_sentence(flags, words):
    if "--task=snli_ve" in flags:
        dropped = ("--scst", "--task=caption")
        cfg = train.parse_args([*(arg for arg in ARGS if arg not in dropped), *flags])
    else:
        cfg = train.parse_args([*ARGS, *flags])
    with pytest.raises(UserError, match=words):
        tasks.setup_task(cfg.task).build_criterion(cfg.criterion)


def test_scst_must_be_asked_for():
    cfg = train.parse_args([arg for arg in ARGS if arg != "--scst"])
    with pytest.raises(UserError, match="--criterion=scst_reward_criterion needs --scst"):
        tasks.setup_task(cfg.task).build_criterion(cfg.criterion)
