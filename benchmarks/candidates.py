"""Choosing among 3,129 answers: one forward per candidate, through the trie, best first, and beam search.

    python -m benchmarks.candidates [--arch ofa_base] [--size 224] [--batch 4] [--repeats 2] [--threads 2]
    python -m benchmarks.candidates --trained outputs/demo_all    # the VQA model of run_scripts/demo_all.sh instead

Prints a table: seconds and decoder rows per question, peak memory and ratios, the encoder's forward left out. Weights
are random; "peaked" has the output scaled by 20, since the logits of random weights are nearly flat, the worst case
of a best-first search. Each side runs in a process of its own, since peak memory is a property of a process.

The answers are made of the words that the vocabulary holds as one token, in its order, which is that of frequency:
1,700 of one word, 1,000 of two, 329 of three and 100 of four. All words but the last are drawn with a preference for
frequent ones (word number 1,700 u^3, u uniform), so that answers share beginnings as in real lists. One forward per
candidate is timed on a few chunks, the fastest of which is multiplied by the number of chunks.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.answers import read_answers
from data.tasks import TASKS
from data.text import Vocabulary
from data.tsv import TsvFile
from data.vqa_gen import VqaGenData, VqaGenDataset
from models.generation import CandidateTrie, GenerationConfig, generate, rank_candidates
from models.ofa import OFA, OFAConfig
from models.ofa.encoder import EncoderOutput
from models.weights import load_model

BPE = Path(__file__).parents[1] / "utils" / "BPE"
DEMO_BPE = Path(__file__).parents[1] / "digits" / "BPE"
PARTS = {1: 1700, 2: 1000, 3: 329, 4: 100}  # words -> answers
CHUNK, TIMED_CHUNKS = 20, 3
PEAKED = 20.0
QUESTIONS = [
    " what color is the cat?",
    " how many people are on the left side of the street?",
    " is it raining?",
    " what is the man in the red shirt holding in his hand?",
]


def make_answers(vocabulary: Vocabulary) -> list[list[int]]:
    """Token ids of 3,129 different answers, in random order."""
    rng = random.Random(0)
    texts = ((number, vocabulary.decode([number])) for number in range(4, 40000))
    words = [n for n, text in texts if text[0] == " " and text[1:].isalpha() and text.islower() and len(text) > 3]
    words = words[: PARTS[1]]
    answers: dict[tuple[int, ...], None] = {(word,): None for word in words}
    for length, count in PARTS.items():
        while sum(len(answer) == length for answer in answers) < count:
            beginning = [words[int(len(words) * rng.random() ** 3)] for _ in range(length - 1)]
            answers[(*beginning, rng.choice(words))] = None
    shuffled = [list(answer) for answer in answers]
    rng.shuffle(shuffled)
    return shuffled


class Setting:
    """The model, the questions and the answers that all sides share."""

    def __init__(self, args: argparse.Namespace) -> None:
        if args.trained:
            self._trained(args.trained, args.batch)
        else:
            self._random(args)
        self.trie = CandidateTrie(self.answers)
        with torch.no_grad():
            self.enc = self.model.encode(**self.inputs)

    def _trained(self, folder: Path, batch: int) -> None:
        """The averaged weights that the demo evaluates, its first test questions and its answers."""
        data = folder / "data" / "vqa_data"
        vocabulary = Vocabulary.load(DEMO_BPE, code_dict_size=1024, num_bins=65)
        options: dict[str, Any] = {"patch_image_size": 48, "max_src_length": 80, "add_object": True}
        config = VqaGenData(ans2label_file=str(data / "trainval_ans2label.pkl"), prompt_type="prev_output", **options)
        rows = VqaGenDataset(
            TsvFile(str(data / "vqa_test.tsv"), TASKS["vqa_gen"].selected_cols), vocabulary, config, "test"
        )
        samples: Any = rows.collater([rows[i] for i in range(batch)])
        self.model = load_model(next((folder / "vqa_gen").rglob("checkpoint_best.pt")), ema=True)
        self.inputs: dict[str, Any] = {name: samples["net_input"][name] for name in ("src_tokens", "patch_images")}
        self.prompts = samples["decoder_prompts"]
        self.answers = [vocabulary.encode(" " + answer) for answer in read_answers(config)]

    def _random(self, args: argparse.Namespace) -> None:
        vocabulary = Vocabulary.load(BPE)
        torch.manual_seed(0)
        self.model = OFA(OFAConfig.from_arch(args.arch)).eval()
        questions = [[0, *vocabulary.encode(QUESTIONS[b % len(QUESTIONS)])] for b in range(args.batch)]
        self.inputs = {
            "src_tokens": pad([[*question, 2] for question in questions]),
            "patch_images": torch.randn(args.batch, 3, args.size, args.size),
        }
        self.prompts = questions
        self.answers = make_answers(vocabulary)
        if args.side.startswith("peaked"):
            with torch.no_grad():
                self.model.decoder.layer_norm.weight.mul_(PEAKED)
                self.model.decoder.layer_norm.bias.mul_(PEAKED)


def pad(rows: list[list[int]]) -> Tensor:
    """(B, T) ids, right-padded with 1."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=1)


def plain_chunk(setting: Setting, chunk: list[list[int]], masks: Tensor) -> Tensor:
    """Scores (B, n) of n candidates: a whole forward each, over the whole vocabulary.

    masks: (n, T, V), False for the tokens that may not come at a position of the answer.
    """
    model, enc, n = setting.model, setting.enc, len(chunk)
    samples = torch.arange(len(setting.prompts)).repeat_interleave(n)
    repeated = EncoderOutput(enc.out[samples], enc.padding_mask[samples], enc.positions.expand(samples.numel(), -1, -1))
    tokens = pad([[*prompt, *answer] for prompt in setting.prompts for answer in chunk])
    logits = model.decode(tokens, repeated)  # (B * n, T, V)
    scores = []
    for row, sample in enumerate(samples.tolist()):
        answer, start = [*chunk[row % n], 2], len(setting.prompts[sample]) - 1
        inside = logits[row, start : start + len(answer)].masked_fill(~masks[row % n, : len(answer)], -torch.inf)
        scores.append(inside.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())
    return torch.stack(scores).view(-1, n)


def plain_masks(setting: Setting, chunk: list[list[int]]) -> Tensor:
    """(n, T, V) for `plain_chunk`; made once for all questions, hence not timed."""
    masks = torch.zeros(len(chunk), max(map(len, chunk)) + 1, setting.model.config.vocab_size, dtype=torch.bool)
    for row, answer in enumerate(chunk):
        for t in range(len(answer) + 1):
            masks[row, t, setting.trie.children(answer[:t])] = True
    return masks


def run_plain(setting: Setting, repeats: int) -> dict[str, Any]:
    """(a), extrapolated from a few chunks."""
    seconds, scores = [], []
    for first in range(0, min(TIMED_CHUNKS, len(setting.answers) // CHUNK) * CHUNK, CHUNK):
        chunk = setting.answers[first : first + CHUNK]
        masks = plain_masks(setting, chunk)
        with torch.no_grad():
            taken, part = timed(lambda chunk=chunk, masks=masks: plain_chunk(setting, chunk, masks))  # type: ignore[misc]
        seconds.append(taken)
        scores.append(part)
    total = min(seconds) * len(setting.answers) / CHUNK
    return {"seconds": total, "rows": len(setting.answers), "scores": torch.cat(scores, 1).tolist()}


def run_ranking(setting: Setting, repeats: int, top_k: int | None) -> dict[str, Any]:
    """(b) or (c)."""
    calls = [
        timed(lambda: rank_candidates(setting.model, setting.enc, setting.trie, setting.prompts, top_k))
        for _ in range(repeats)
    ]
    seconds, ranking = min(calls, key=lambda call: call[0])
    result = {"seconds": seconds, "rows": ranking.expanded.double().mean().item()}
    result["best"] = ranking.indices[:, 0].tolist()
    if top_k is None:
        timed_answers = min(TIMED_CHUNKS, len(setting.answers) // CHUNK) * CHUNK
        result["scores"] = ranking.scores[:, :timed_answers].tolist()
    return result


def run_beam(setting: Setting, repeats: int) -> dict[str, Any]:
    """(d), without the encoder's forward that `generate` includes."""
    config = GenerationConfig(beam=5, unnormalized=True, max_len_b=max(map(len, setting.prompts)) + 6)
    prefix = pad([prompt[1:] for prompt in setting.prompts])
    seconds, encoder = [], []
    for _ in range(repeats):
        with torch.no_grad():
            encoder.append(timed(lambda: setting.model.encode(**setting.inputs))[0])
        seconds.append(timed(lambda: generate(setting.model, setting.inputs, config, setting.trie, prefix))[0])
    return {"seconds": min(seconds) - min(encoder), "rows": None}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds a call takes, and what it returns."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


SIDES: dict[str, tuple[str, Callable[[Setting, int], dict[str, Any]]]] = {
    "plain": ("(a) one forward per candidate, 20 at a time", run_plain),
    "scores": ("(b) exact scores of all through the trie", lambda s, n: run_ranking(s, n, None)),
    "best": ("(c) exact best, random weights", lambda s, n: run_ranking(s, n, 1)),
    "peaked scores": ("(b) peaked", lambda s, n: run_ranking(s, n, None)),
    "peaked best": ("(c) peaked", lambda s, n: run_ranking(s, n, 1)),
    "beam": ("(d) beam 5 with the trie", run_beam),
}


def memory(field: str) -> float:
    """Megabytes this process uses now (VmRSS) or used at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def measure(args: argparse.Namespace) -> None:
    """Prints one side's figures as JSON."""
    torch.set_num_threads(args.threads)
    setting = Setting(args)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is used now (Linux)
    before = memory("VmRSS")
    result = SIDES[args.side][1](setting, args.repeats)
    result["megabytes"] = memory("VmHWM") - before
    if args.side == "plain":
        trie, lengths = setting.trie, Counter(map(len, setting.answers))
        branching = int((trie.offsets.diff() > 1).sum())
        result["list"] = f"tokens per answer {dict(sorted(lengths.items()))}, {branching} nodes branch"
    print(json.dumps(result))


def main() -> None:
    """Runs all sides, checks that they agree and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="ofa_base", help="model size")
    parser.add_argument("--size", type=int, default=224, help="image side (pixels)")
    parser.add_argument("--batch", type=int, default=4, help="questions in a batch")
    parser.add_argument("--repeats", type=int, default=2, help="runs; the fastest counts")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--trained", type=Path, help="what run_scripts/demo_all.sh wrote")
    parser.add_argument("--side", choices=SIDES, help="measure one side only and print JSON")
    args = parser.parse_args()
    if args.side:
        measure(args)
        return
    results = {}
    sides = [side for side in SIDES if not (args.trained and side.startswith("peaked"))]
    for side in sides:
        command = [sys.executable, "-m", "benchmarks.candidates", "--side", side]
        command += [f"--{name}={getattr(args, name)}" for name in ("arch", "size", "batch", "repeats", "threads")]
        command += [f"--trained={args.trained}"] if args.trained else []
        results[side] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    torch.testing.assert_close(*(torch.tensor(results[s]["scores"]) for s in ("plain", "scores")), atol=1e-4, rtol=0)
    assert results["best"]["best"] == results["scores"]["best"]
    assert args.trained or results["peaked best"]["best"] == results["peaked scores"]["best"]
    model = str(args.trained) if args.trained else f"{args.arch}, {args.size} px"
    print(f"{model}, {args.batch} questions, {args.threads} threads")
    print(f"{results['plain']['list']}\n")
    print("| per question | seconds | decoder rows | (a) / this | this / (d) | peak memory of the batch (MB) |")
    print("|---|---|---|---|---|---|")
    slowest, beam = results["plain"]["seconds"], results["beam"]["seconds"]
    for side, result in results.items():
        seconds = result["seconds"]
        ratios = f"{slowest / seconds:.0f} | {seconds / beam:.2f}"
        rows = "" if result["rows"] is None else f"{result['rows']:.0f}"
        per_question = f"{seconds / args.batch:.3f} | {rows}"
        print(f"| {SIDES[side][0]} | {per_question} | {ratios} | {result['megabytes']:.0f} |")


if __name__ == "__main__":
    main()
