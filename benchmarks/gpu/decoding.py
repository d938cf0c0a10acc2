"""Answers on the device in bfloat16: captions, exact answers, boxes and drawn codes a second; kernels and waits a step.

    python -m benchmarks.gpu.decoding [--device cpu --tiny] [--seconds 2]

Random weights; end of a caption is forbidden for 16 tokens, so that every search runs its full length. "graphs" are
steps replayed as CUDA graphs.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.candidates import BPE, QUESTIONS, make_answers, pad
from benchmarks.gpu.measure import add_row, begin_table, count, free, make_parser, measure, peak_gigabytes
from data.text import Vocabulary
from models.generation import CandidateTrie, GenerationConfig, generate, rank_candidates
from models.ofa import OFA, OFAConfig
from models.text_to_image import code_options

CAPTION = [0, 99, 473, 5, 2274, 6190, 116, 2]  # begin of sentence, " what does the image describe?", end of sentence
TOKENS, BINS, FIRST_CODE, CODES = 16, "58457,59457", 50265, 8192


class Sides:
    """The kinds of answers of one model; each takes a number of rows and gives a call."""

    def __init__(self, arch: str, side: int, device: str) -> None:
        torch.manual_seed(0)
        with torch.device(device):
            model = OFA(OFAConfig.from_arch(arch, code_image_size=256)).eval()
        self.model, self.side, self.device = model.to(torch.bfloat16), side, device
        vocabulary = Vocabulary.load(BPE)
        self.trie = CandidateTrie(make_answers(vocabulary))
        self.questions = [[0, *vocabulary.encode(text)] for text in QUESTIONS]

    def images(self, rows: int) -> torch.Tensor:
        """(B, 3, R, R)."""
        return torch.randn(rows, 3, self.side, self.side, device=self.device, dtype=torch.bfloat16)

    def encode(self, rows: int) -> Callable[[], Any]:
        """The encoder alone."""
        source, images = torch.tensor([CAPTION] * rows, device=self.device), self.images(rows)
        return lambda: self.model.encode(source, images)

    def caption(self, rows: int, tokens: int = TOKENS) -> Callable[[], Any]:
        """Beam 5, 16 tokens."""
        config = GenerationConfig(beam=5, min_len=tokens, max_len_b=tokens, no_repeat_ngram_size=3)
        inputs = {"src_tokens": torch.tensor([CAPTION] * rows, device=self.device), "patch_images": self.images(rows)}
        return lambda: generate(self.model, inputs, config)

    def with_graphs(self, make: Callable[..., Callable[[], Any]], *sizes: int) -> Callable[[], Any]:
        """A kind of answers with replayed steps."""
        call = make(*sizes)

        def run() -> Any:
            self.model.cuda_graphs = True
            try:
                return call()
            finally:
                self.model.cuda_graphs = False

        return run

    def box(self, rows: int) -> Callable[[], Any]:
        """Beam 5, four coordinates."""
        config = GenerationConfig(beam=5, min_len=4, max_len_a=0, max_len_b=4, constraint_range=BINS)
        inputs = {"src_tokens": torch.tensor([CAPTION] * rows, device=self.device), "patch_images": self.images(rows)}
        return lambda: generate(self.model, inputs, config)

    def answer(self, rows: int) -> Callable[[], Any]:
        """The best of 3,129 answers, exactly."""
        prompts = [self.questions[i % len(self.questions)] for i in range(rows)]
        source, images = pad([[*prompt, 2] for prompt in prompts]).to(self.device), self.images(rows)
        return lambda: rank_candidates(self.model, self.model.encode(source, images), self.trie, prompts, top_k=1)

    def draw(self, rows: int, codes: int) -> Callable[[], Any]:
        """Image codes by sampling among the 256 most likely."""
        config = GenerationConfig(beam=1, sampling_topk=256, **code_options(FIRST_CODE, CODES, codes))
        inputs = {"src_tokens": torch.tensor([CAPTION] * rows, device=self.device)}
        return lambda: generate(self.model, inputs, config)

    def todo(self, arch: str, tiny: bool) -> Iterator[tuple[str, int, Callable[[], Any]]]:
        """What is measured of a size: name, rows, how to make the call."""
        for rows in (2,) if tiny else (16, 128) if arch == "ofa_large" else (1, 16, 128, 256):
            yield "encoder alone", rows, partial(self.encode, rows)
            yield "caption, beam 5", rows, partial(self.caption, rows)
            yield "caption, beam 5, graphs", rows, partial(self.with_graphs, self.caption, rows)
        rows = 2 if tiny else 128
        yield "answer of 3,129, exact", rows, partial(self.answer, rows)
        yield "box, beam 5", rows, partial(self.box, rows)
        if arch != "ofa_large":
            yield "16 codes, sampled", rows // 4, partial(self.draw, max(1, rows // 4), 16)
            if not tiny:
                yield "256 codes, sampled", rows // 4, partial(self.draw, rows // 4, 256)
                yield "256 codes, graphs", rows // 4, partial(self.with_graphs, self.draw, rows // 4, 256)


def self_check(sides: Sides, rows: int) -> str:
    """Whether replayed steps write the captions of plain steps."""
    call = sides.caption(rows)
    plain, replayed = call(), sides.with_graphs(lambda: call)()
    same = sum(torch.equal(a[0].tokens, b[0].tokens) for a, b in zip(plain, replayed, strict=True))
    return f"Captions with CUDA graphs that equal those without: {same} of {rows}."


@torch.inference_mode()
def main() -> None:
    """Measures and prints."""
    args = make_parser(__doc__ or "").parse_args()
    device = args.device
    for arch, side in [("ofa_demo", 48)] if args.tiny else [("ofa_base", 480), ("ofa_large", 480)]:
        sides = Sides(arch, side, device)
        begin_table("model", "answers", "batch", "ms", "rows a second", "peak GB")
        for name, rows, make in sides.todo(arch, args.tiny):
            try:
                call = make()
                memory = peak_gigabytes(call, device)  # also warms up
                each = measure(call, device, args.seconds, warmup=0)
                add_row(arch, name, rows, 1000 * each, rows / each, memory)
            except (RuntimeError, TypeError, ValueError) as error:
                add_row(arch, name, rows, f"{type(error).__name__}: {error}", "", "")
            call = None
            free(device)
        few = 2 if args.tiny else 16
        searches = [count(sides.caption(few, tokens), device) for tokens in (8, 16)]
        with_graphs = self_check(sides, few)
        kernels, waits, operators = ((long - short) / 8 for short, long in zip(*searches, strict=True))
        ranking = count(sides.answer(few), device)
        print(f"\n- A step of beam search: {kernels:.0f} kernels, {waits:.1f} waits, {operators:.0f} operators.")
        print(f"- {with_graphs}")
        print(f"- A ranking of {few} questions, encoder included: {ranking.launches} kernels, {ranking.waits} waits.")


if __name__ == "__main__":
    main()
