"""Number formats for inference: time, memory of weights, and what each costs in accuracy.

    python -m benchmarks.inference_weights [--arch ofa_base] [--size 224] [--images 8] [--rows 500]

Two tables. One has a random model of a size: seconds of the encoder, seconds of captions by beam search (beam 5, 16
tokens, encoder included), memory of the weights, and how far the encoder's output is from float32's. The other has
checkpoints/ofa_demo.pt on digit scenes: captions that are exactly right, VQA score, boxes with an IoU of 0.5, in
percent; answers that are those of float32; and the mean difference of the log-probabilities of the right captions.
Repeats go round all formats, so that what else the machine does meets them alike.
"""

import argparse
import base64
import copy
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from data.tsv import TsvFile
from digits.__main__ import main as write_scenes
from models.generation import GenerationConfig, generate
from models.ofa import OFA, OFAConfig, int8
from models.ofa.folding import InferenceOnly
from models.ofa.inference import prepare_for_inference
from models.predictor import OFAPredictor
from models.weights import load_model
from models.weights.description import ROOT

DEMO = ROOT / "checkpoints" / "ofa_demo.pt"
OPTIONS: dict[str, Any] = {"bpe_dir": str(ROOT / "digits" / "BPE"), "patch_image_size": 48}
PROMPT = [0, 99, 473, 5, 2274, 6190, 116, 2]  # as long as that of captions
TOKENS = 16
IOU = 0.5


def multiplied_out(model: OFA, dtype: torch.dtype = torch.float32) -> OFA:
    """int8 weights without the CPU's integer product: what other devices compute."""
    with patch.object(int8, "has_integer_product", lambda: False):
        return prepare_for_inference(model, dtype, int8=True)


# Name -> a loaded model in that format.
SIDES: dict[str, Callable[[OFA], OFA]] = {
    "float32, not folded": lambda model: model.requires_grad_(False),
    "float32": prepare_for_inference,
    "bfloat16, not folded": lambda model: model.to(torch.bfloat16),
    "bfloat16": lambda model: prepare_for_inference(model, torch.bfloat16),
    "float16, not folded": lambda model: model.to(torch.float16),
    "float16": lambda model: prepare_for_inference(model, torch.float16),
    "float32, int8 weights": lambda model: prepare_for_inference(model, int8=True),
    "float32, int8 weights multiplied out": multiplied_out,
    "bfloat16, int8 weights multiplied out": lambda model: multiplied_out(model, torch.bfloat16),
}


def weight_bytes(model: OFA) -> int:
    """Memory of everything that is not a table of indices."""
    kept = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.dtype != torch.long)]
    for module in model.modules():
        if isinstance(module, InferenceOnly) and module.original is not None:
            kept += module.original.values()
    packed = [module for module in model.modules() if isinstance(module, int8.Int8Linear) and module.packed is not None]
    return sum(tensor.nbytes for tensor in kept) + sum(m.in_features * m.out_features for m in packed)


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.inference_mode()
def speed(args: argparse.Namespace) -> None:
    """Prints the table of a random model."""
    torch.manual_seed(0)
    loaded = OFA(OFAConfig.from_arch(args.arch)).eval()
    source, images = torch.tensor([PROMPT] * args.images), torch.randn(args.images, 3, args.size, args.size)
    config = GenerationConfig(beam=5, min_len=TOKENS, max_len_b=TOKENS, no_repeat_ngram_size=3)
    models = {name: SIDES[name](copy.deepcopy(loaded)) for name in args.sides}

    def inputs(model: OFA) -> dict[str, Any]:
        return {"src_tokens": source, "patch_images": images.to(model.encoder.embed_tokens.weight.dtype)}

    features = {name: model.encode(**inputs(model)).out.float() for name, model in models.items()}
    exact = features[args.sides[0]]
    encoder: dict[str, list[float]] = {name: [] for name in models}
    captions: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.repeats):
        for name, model in models.items():
            encoder[name].append(seconds(lambda m=model: m.encode(**inputs(m))))  # type: ignore[misc]
            captions[name].append(seconds(lambda m=model: generate(m, inputs(m), config)))  # type: ignore[misc]
    print(f"{args.arch}, random weights, {args.images} images of {args.size} px, {args.threads} threads\n")
    print("| | weights, MB | encoder, s | captions, s | encoder's output, largest difference | mean |")
    print("|---|---|---|---|---|---|")
    for name, model in models.items():
        off = (features[name] - exact).abs() / exact.abs().max()
        times = f"{min(encoder[name]):.2f} | {min(captions[name]):.2f}"
        print(
            f"| {name} | {weight_bytes(model) / 1e6:.0f} | {times} | {off.max():.1e} | {off.mean():.1e} |", flush=True
        )


class Scenes:
    """Test rows of the demo's captions, questions and phrases."""

    def __init__(self, folder: Path, rows: int) -> None:
        counts = [f"--{split}={count}" for split, count in (("train", 4), ("val", 4), ("test", rows))]
        with redirect_stdout(StringIO()):
            write_scenes([str(folder), "--tasks=caption,vqa_gen,refcoco", *counts])
        self.captions = self._read(folder / "caption_data" / "caption_test.tsv", "2,4")
        self.questions = self._read(folder / "vqa_data" / "vqa_test.tsv", "2,3,5")
        self.phrases = self._read(folder / "refcoco_data" / "refcoco_testA.tsv", "2,3,4")
        self.candidates = str(folder / "vqa_data" / "trainval_ans2label.pkl")

    @staticmethod
    def _read(path: Path, columns: str) -> list[list[Any]]:
        """Columns; the last is the image, as the bytes of a file."""
        file = TsvFile(path, columns)
        rows = [file[i] for i in range(len(file))]
        return [
            *map(list, zip(*(row[:-1] for row in rows), strict=True)),
            [base64.urlsafe_b64decode(r[-1]) for r in rows],
        ]

    def answers(self, p: OFAPredictor) -> list[list[Any]]:
        """Captions, answers and rounded boxes."""
        texts: Any = p.caption(self.captions[-1])
        replies: Any = p.answer(self.questions[-1], self.questions[0])
        boxes: Any = p.ground(self.phrases[-1], self.phrases[0])
        corners = [tuple(round(x) for x in (b.x0, b.y0, b.x1, b.y1)) for b in boxes]
        return [[x.text for x in texts], [x.text for x in replies], corners]

    def scores(self, found: list[list[Any]]) -> list[float]:
        """Percent of captions, answers and boxes that are right."""
        texts, replies, boxes = found
        exact = [text == right for text, right in zip(texts, self.captions[0], strict=True)]
        rated = [float(dict(part.split("|!+")[::-1] for part in ref.split("&&")).get(reply, 0))
                 for reply, ref in zip(replies, self.questions[1], strict=True)]  # fmt: skip
        hits = [_iou(box, tuple(map(float, ref.split(",")))) >= IOU
                for box, ref in zip(boxes, self.phrases[1], strict=True)]  # fmt: skip
        return [100 * sum(column) / len(column) for column in (exact, rated, hits)]


def _iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width, height = (max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / max(sum(areas) - width * height, 1e-9)


@torch.inference_mode()
def caption_log_probs(p: OFAPredictor, images: list[bytes], texts: list[str]) -> Tensor:
    """Log-probabilities (tokens, V) of the tokens of given captions, end included."""
    batches = []
    for image, text in zip(images, texts, strict=True):
        ids = p.vocab.encode(" " + text)
        pixels = p.transform(p.read_image(image))[None].to(p.dtype)
        source = torch.tensor([[p.vocab.bos, *p.vocab.encode(" what does the image describe?"), p.vocab.eos]])
        logits = p.model(source, torch.tensor([[p.vocab.bos, *ids]]), patch_images=pixels)
        scores = logits[0].log_softmax(-1, dtype=torch.float32)
        batches.append(scores.gather(1, torch.tensor([*ids, p.vocab.eos])[:, None]))
    return torch.cat(batches)


def accuracy(args: argparse.Namespace) -> None:
    """Prints the table of the demo checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        scenes = Scenes(Path(folder), args.rows)
        first = OFAPredictor.load(DEMO, "cpu", ans2label_file=scenes.candidates, **OPTIONS)
        print(f"\nofa_demo.pt without fine-tuning, {args.rows} test rows of each task\n")
        print(
            "| | captions right, % | VQA score, % | boxes right, % | as float32, % | log-probability, mean difference |"
        )
        print("|---|---|---|---|---|---|")
        exact: Any = None
        for name in args.sides:
            p = OFAPredictor(SIDES[name](load_model(DEMO)), first.vocab, first.description, batch_size=32)
            found = scenes.answers(p)
            log_probs = caption_log_probs(p, scenes.captions[-1][:50], scenes.captions[0][:50])
            exact = exact or (found, log_probs)
            same = [a == b for a, b in zip(sum(found, []), sum(exact[0], []), strict=True)]
            scores = " | ".join(f"{score:.1f}" for score in scenes.scores(found))
            off = (log_probs - exact[1]).abs().mean()
            print(f"| {name} | {scores} | {100 * sum(same) / len(same):.1f} | {off:.1e} |", flush=True)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.inference_weights", description="Number formats, compared.")
    parser.add_argument("--arch", default="ofa_base", help="size of the random model (default %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of its images in pixels (default %(default)s)")
    parser.add_argument("--images", type=int, default=8, help="how many, 0: no table (default %(default)s)")
    parser.add_argument("--rows", type=int, default=500, help="of each demo task, 0: no table (default %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="of each format, the fastest counts (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (default %(default)s)")
    parser.add_argument("--sides", type=lambda text: text.split(";"), default=list(SIDES), help="formats, joined by ;")
    return parser.parse_args()


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.images:
        speed(args)
    if args.rows:
        accuracy(args)


if __name__ == "__main__":
    main()
