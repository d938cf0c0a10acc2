"""Prompt in, image out: python image_gen_example.py "a red bus" --out bus.png (without a prompt, a line of stdin)."""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from PIL import Image

from data.image_gen import code_count
from data.prompts import prompt
from data.text import Vocabulary
from models.generation import GenerationConfig
from models.text_to_image import Painter, code_options, row_generators, sample_codes
from models.weights import load_model
from utils.errors import UserError, one_sentence

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "checkpoints"


def parse_args() -> argparse.Namespace:
    """Flags; the defaults are the original's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", help="what to draw")
    parser.add_argument("--out", default="picture.png", help="file to write (default %(default)s)")
    parser.add_argument("--path", default=FILES / "image_gen_large_best.pt", help="checkpoint (default %(default)s)")
    parser.add_argument("--vqgan-model-path", default=f"{FILES}/vqgan/last.ckpt", help="default %(default)s")
    parser.add_argument("--vqgan-config-path", default=f"{FILES}/vqgan/model.yaml", help="default %(default)s")
    parser.add_argument(
        "--clip-model-path",
        default=f"{FILES}/clip/ViT-B-16.pt",
        help="CLIP file that chooses the best samples; empty: take the first (default %(default)s)",
    )
    parser.add_argument("--bpe-dir", default=ROOT / "utils" / "BPE", help="vocabulary folder (default %(default)s)")
    parser.add_argument("--code-dict-size", type=int, default=8192, help="image codes (default %(default)s)")
    parser.add_argument("--num-bins", type=int, default=1000, help="location tokens (default %(default)s)")
    parser.add_argument("--samples", type=int, default=16, help="samples per round (default %(default)s)")
    parser.add_argument("--times", type=int, default=2, help="rounds of sampling (default %(default)s)")
    parser.add_argument("--sampling-topk", type=int, default=256, help="likeliest codes to draw (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1: less variety (default %(default)s)")
    parser.add_argument("--sheet", type=int, default=4, help="number of best images on the sheet (default %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="random seed (default %(default)s)")
    return parser.parse_args()


def best_images(args: argparse.Namespace, text: str) -> list[Image.Image]:
    """All samples of a prompt, best first."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vocab = Vocabulary.load(args.bpe_dir, code_dict_size=args.code_dict_size, num_bins=args.num_bins)
    files = (args.vqgan_model_path, args.vqgan_config_path, args.clip_model_path)
    painter = Painter.load(*files, vocab.code_start, vocab.num_codes, device)
    model = load_model(args.path, device=device)
    if model.config.vocab_size != len(vocab):
        raise UserError(f"{args.path} has {model.config.vocab_size} ids, not {len(vocab)}: check --code-dict-size.")
    options = code_options(vocab.code_start, vocab.num_codes, code_count(model.config.code_image_size))
    config = GenerationConfig(
        beam=args.samples, sampling_topk=args.sampling_topk, temperature=args.temperature, **options
    )
    ids = vocab.encode(prompt("image_gen", vocab.bpe).format(caption=text))
    inputs = {"src_tokens": torch.tensor([[vocab.bos, *ids, vocab.eos]], device=device)}
    generators = row_generators(args.seed, [0], torch.device(device))
    samples = sample_codes([model], inputs, config, args.times, generators)
    return [image.image for image in painter.choose(samples, [text])[0]]


def sheet(images: list[Image.Image]) -> Image.Image:
    """Images row by row on a square."""
    across, (width, height) = math.ceil(math.sqrt(len(images))), images[0].size
    page = Image.new("RGB", (across * width, math.ceil(len(images) / across) * height))
    for number, image in enumerate(images):
        page.paste(image, (number % across * width, number // across * height))
    return page


def main() -> int:
    """0, or 2 and one sentence."""
    args = parse_args()
    text = " ".join((args.prompt if args.prompt is not None else sys.stdin.readline()).split())
    try:
        if not text or args.sheet < 1:
            raise UserError("Nothing to draw: pass a prompt, and --sheet of at least 1.")
        sheet(best_images(args, text)[: args.sheet]).save(args.out)
    except (UserError, OSError) as error:
        print(f"image_gen_example.py: error: {one_sentence(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
