"""Describes images with an exported model: `python caption.py IMAGE...` in the folder of an export (docs/export.md).

It needs onnxruntime, numpy, Pillow and tokenizers only.
"""

import json
import string
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


class Captioner:
    """The programs of a folder: encoder, first and next step of the decoder."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.programs = {file.stem: onnxruntime.InferenceSession(file) for file in folder.glob("*.onnx")}

    def run(self, program: str, **inputs: Any) -> dict[str, Any]:
        """The outputs of a program by name."""
        names = [output.name for output in self.programs[program].get_outputs()]
        return dict(zip(names, self.programs[program].run(names, inputs), strict=True))

    def pixels(self, image: Image.Image) -> Any:
        """Image -> (1, 3, R, R): upright, on white, resized, normalized."""
        if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
            raise ValueError(f"its pixels have an unknown range (mode {image.mode}): save it with 8 or 16 bits")
        image, options = ImageOps.exif_transpose(image), self.config["image"]
        if image.mode.startswith("I"):  # 16 bits, of which Pillow would cut off the high ones
            values = np.asarray(image)
            clear = values == image.info.get("transparency", -1)
            image = Image.fromarray(np.where(clear, 255, values >> 8).astype(np.uint8))
        rgba = image.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        square = rgb.resize((options["side"], options["side"]), Image.Resampling.BICUBIC)
        pixels = (np.asarray(square, np.float32) / 255 - np.float32(options["mean"])) / np.float32(options["std"])
        return pixels.transpose(2, 0, 1)[None]

    def caption(self, image: Image.Image) -> str:
        """The best caption that beam search finds."""
        ids, search, prompt = self.config["ids"], self.config["decoding"]["caption"], self.config["prompts"]["caption"]
        bos, eos, beam, longest = ids["bos"], ids["eos"], search["beam"], search["max_len_b"]
        source = np.array([[bos, *self.tokenizer.encode(prompt).ids, eos]])
        encoded = self.run("encoder", src_tokens=source, patch_images=self.pixels(image), patch_masks=np.array([True]))
        state = self.run("decoder_first", tokens=np.array([[bos]]), **encoded)
        memory = {name: x for name, x in state.items() if name.startswith("memory")}
        texts, scores, finished = [[bos]], np.zeros(1), []
        for length in range(longest + 1):
            log_probs = _log_softmax(state["logits"][:, -1])
            log_probs[:, [ids["pad"], *([eos] if length < search["min_len"] else [])]] = -np.inf
            if length == longest:
                log_probs[:, np.arange(log_probs.shape[1]) != eos] = -np.inf
            for row, text in enumerate(texts):
                log_probs[row, _repeats(text, search["no_repeat_ngram_size"])] = -np.inf
            totals = (log_probs + scores[:, None]).ravel()
            ranked = [n for n in np.argsort(-totals, kind="stable")[: 2 * beam] if totals[n] > -np.inf]
            best = [(*divmod(int(n), log_probs.shape[1]), totals[n]) for n in ranked]  # row, token, score
            ended = [found for found in best[:beam] if found[1] == eos]
            finished += [(score / (length + 1) ** search["lenpen"], texts[row]) for row, _, score in ended]
            going = [found for found in best if found[1] != eos][:beam]
            if len(finished) >= beam or not going:
                break
            rows, tokens, scores = (np.array(column) for column in zip(*going, strict=True))
            texts = [[*texts[row], token] for row, token, _ in going]
            past = {name.replace("present", "past"): x[rows] for name, x in state.items() if "present" in name}
            if length == 0:  # all beams read the same image; positions are the same for all rows anyway
                memory |= {name: x.repeat(len(rows), 0) for name, x in memory.items() if "positions" not in name}
            state = self.run("decoder_next", tokens=tokens[:, None], **past, **memory)
        best_text = max(finished[:beam], key=lambda found: found[0])[1]
        words = [token for token in best_text if token not in (bos, ids["unk"])]
        caption: str = self.tokenizer.decode(words, skip_special_tokens=False)
        return caption.translate(str.maketrans("", "", string.punctuation)).strip()


def _log_softmax(logits: Any) -> Any:
    """Logits (rows, V) -> log-probabilities."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _repeats(text: list[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram of a text for the second time; none of size 0."""
    starts = range(len(text) - size + 1) if size else range(0)
    return [text[i + size - 1] for i in starts if text[i : i + size - 1] == text[len(text) - size + 1 :]]


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("usage: python caption.py IMAGE...")
    captioner, failed = Captioner(Path(__file__).parent), 0
    for path in sys.argv[1:]:
        try:
            print(path, captioner.caption(Image.open(path)), sep="\t")
        except (OSError, ValueError) as error:  # also of a file that is no image
            print(f"{path} cannot be read: {error}", file=sys.stderr)
            failed = 1
    sys.exit(failed)
