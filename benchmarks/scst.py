"""Where the time of an update of captioning's stage 2 goes: generation, scores, loss, the rest; a markdown table.

    python -m benchmarks.scst [--arch ofa_base] [--size 224] [--images 2] [--beam 5] [--tokens 12] [--repeats 3]

Real updates by the trainer, on digit scenes, from random weights; end of sentence is forbidden until --tokens, so that
every caption has that length. The last row is the loss of the same captions as the original computes it: each image
goes through the encoder once per caption.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairseq import tasks

import train
from criterions.scst import SelfCriticalCriterion
from digits.__main__ import main as write_demo
from ofa_module.engine.trainer import OFATrainer

BPE = Path(__file__).parents[1] / "utils" / "BPE"


class Clock:
    """Seconds spent in some methods of some objects."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def watch(self, owner: Any, method: str, name: str) -> None:
        """From now on calls of a method count as `name`."""
        setattr(owner, method, self.timed(getattr(owner, method), name))

    def timed(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The call, counted as `name`."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = call(*args, **kwargs)
            self.seconds[name] += time.perf_counter() - start
            return result

        return counted


def make_trainer(args: argparse.Namespace, folder: Path) -> tuple[OFATrainer, dict[str, Any]]:
    """A trainer and a batch of images."""
    counts = [f"--train={args.images}", "--val=1", "--test=1", f"--size={args.size}"]
    assert write_demo([str(folder), "--tasks=caption", *counts]) == 0
    cfg = train.parse_args(
        [
            str(folder / "caption_data" / "caption_stage1_train.tsv"), f"--bpe-dir={BPE}", "--task=caption", "--scst",
            "--selected-cols=1,4,2", f"--arch={args.arch}", f"--patch-image-size={args.size}",
            "--criterion=scst_reward_criterion", "--scst-cider-cached-tokens=", "--cpu",
            f'--scst-args={{"beam":{args.beam},"min_len":{args.tokens},"max_len_b":{args.tokens}}}',
            f"--batch-size={args.images}", "--optimizer=adam", "--lr=1e-5", "--lr-scheduler=fixed", "--clip-norm=1.0",
            "--freeze-encoder-embedding", "--freeze-decoder-embedding", "--scale-attn", "--scale-fc", "--scale-heads",
            "--disable-entangle", f"--save-dir={folder}", "--num-workers=0",
        ]
    )  # fmt: skip
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(0)
    trainer = OFATrainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    (batch,) = trainer.get_train_iterator(1).next_epoch_itr(shuffle=False)
    return trainer, batch


def encoded_per_caption(trainer: OFATrainer, batch: dict[str, Any], beam: int) -> float:
    """Seconds of forward and backward of the loss with every image repeated for each of its captions."""
    criterion: SelfCriticalCriterion = trainer.get_criterion()
    captions = criterion.hypotheses(trainer.get_model(), batch)
    inputs = {name: value.repeat_interleave(beam, 0) for name, value in batch["net_input"].items()}
    references = [own for own in batch["references"] for _ in range(beam)]
    clock = Clock()
    # one caption an image has reward 0, which costs as much as any other
    criterion.hypotheses = lambda *_: [[tokens] for own in captions for tokens in own]  # type: ignore[method-assign]
    forward = clock.timed(
        lambda: criterion(trainer.get_model(), {"net_input": inputs, "references": references})[0], "loss"
    )
    clock.timed(forward().backward, "loss")()
    trainer.optimizer.zero_grad()
    return clock.seconds["loss"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.scst", description="Time self-critical updates.")
    parser.add_argument("--arch", default="ofa_base", help="model size (default %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="image side in pixels (default %(default)s)")
    parser.add_argument("--images", type=int, default=2, help="images in an update (default %(default)s)")
    parser.add_argument("--beam", type=int, default=5, help="captions of an image (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=12, help="tokens of a caption (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="updates after one to warm up (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer, batch = make_trainer(args, Path(folder))
        trainer.train_step([batch])
        clock = Clock()
        clock.watch(trainer.get_criterion(), "hypotheses", "generation")
        clock.watch(trainer.get_criterion(), "scores", "scores")
        clock.watch(trainer.get_criterion(), "compute", "criterion")
        clock.watch(trainer.optimizer, "backward", "backward")
        clock.watch(trainer, "train_step", "update")
        for _ in range(args.repeats):
            trainer.train_step([batch])
        seconds = {name: total / args.repeats for name, total in clock.seconds.items()}
        repeated = encoded_per_caption(trainer, batch, args.beam)
    seconds["loss, forward"] = seconds["criterion"] - seconds["generation"] - seconds["scores"]
    seconds["loss, backward"] = seconds["backward"]
    parts = ["generation", "scores", "loss, forward", "loss, backward"]
    seconds["the rest: clipping, optimizer"] = seconds["update"] - sum(seconds[part] for part in parts)
    print(f"{args.arch}, {args.images} images of {args.size} px, beam {args.beam}, {args.tokens} tokens, ", end="")
    print(f"{args.threads} CPU threads\n\n| | seconds | share |\n|---|---|---|")
    for part in [*parts, "the rest: clipping, optimizer", "update"]:
        print(f"| {part} | {seconds[part]:.3f} | {100 * seconds[part] / seconds['update']:.1f} % |")
    ours = seconds["loss, forward"] + seconds["loss, backward"]
    print(f"| loss with an image encoded per caption | {repeated:.3f} | {repeated / ours:.1f} times ours |")


if __name__ == "__main__":
    main()
