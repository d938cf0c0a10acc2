"""The web page: tabs that run an `OFAPredictor` on images and texts. The only file that imports gradio."""

import functools
import html
import os
from abc import ABCMeta
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from data.images import decode_base64
from digits import examples
from models.predictor import Box, OFAPredictor
from utils.errors import UserError, one_sentence, quoted
from utils.files import text_lines

# Read while gradio is imported: no reports to its makers.
os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
try:
    import gradio as gr
except ImportError as error:
    raise UserError("The web page needs gradio: pip install -r requirements-extras.txt.") from error

COUNTS = 1, 9  # images drawn at once
TEMPERATURES = 0.1, 1.5
UPLOAD = "50mb"  # largest file that is taken
LONGEST = 10_000  # characters of a text
WAITING = 32  # queued requests; further visitors are asked to come back later
HEIGHT = 280  # height in the page (pixels)
BOX_COLOR = "#ff3df0"  # no color of the digit scenes
FONTS = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # the browser's own: nothing is loaded
CSS = "#drawings img { image-rendering: pixelated; }"  # a demo model's images are 32 pixels wide
NO_VQGAN = (
    "Drawing needs a VQGAN: start the page with `--vqgan CHECKPOINT YAML`, e.g. its `last.ckpt` and `model.yaml`."
)
NO_CODES = "This model has no image codes: start the page with the checkpoint of a text-to-image model."


def _where(self: gr.Image, payload: Any) -> str | None:
    """The file or the data URL of an image: gradio's own reading clips gray of 16 bits and shows hidden colors."""
    inside = payload is not None and (payload.url or "").startswith("data:")
    return payload and (payload.url if inside else payload.path)


def _as_sent(self: gr.Slider, payload: Any) -> Any:
    """A number as it was sent: gradio's own reading ends in a TypeError for what is none."""
    return payload


def _component(kind: Any, name: str, preprocess: Callable[..., Any]) -> Any:
    """A component with a reading of its own."""
    # Not a class statement: gradio writes a stub file beside the source of a class that is made from its own.
    return ABCMeta.__new__(
        type(kind), name, (kind,), {"preprocess": preprocess, "is_template": True, "__module__": __name__}
    )


ImageBox = _component(gr.Image, "ImageBox", _where)
NumberSlider = _component(gr.Slider, "NumberSlider", _as_sent)


class Answers:
    """What the buttons do: values of the page in, values out; an image is its file or data URL.

    Raises UserError where something is missing or cannot be used.
    """

    def __init__(self, predictor: OFAPredictor) -> None:
        self.predictor = predictor

    def anything(self, image: str | None, instruction: str) -> tuple[str, str]:
        """Text and score after any instruction, with or without an image."""
        text = _text(instruction, "an instruction")
        return _said(self.predictor.generate(self._read(image) if image else None, text))

    def caption(self, image: str | None) -> tuple[str, str]:
        """Caption and score."""
        return _said(self.predictor.caption(self._read(image)))

    def question(self, image: str | None, question: str, candidates: str) -> tuple[str, str]:
        """Answer and score; one candidate per line; none = those of the checkpoint or any text."""
        names = list(
            dict.fromkeys(line.strip() for line in text_lines(_short(candidates, "the candidates")) if line.strip())
        )
        return _said(self.predictor.answer(self._read(image), _text(question, "a question"), names or None))

    def grounding(self, image: str | None, phrase: str) -> tuple[Image.Image, str, str]:
        """The image with the box drawn, the box in words and its score."""
        shown = self._read(image)
        box: Any = self.predictor.ground(shown, _text(phrase, "a phrase"))
        corners = f"x0 {box.x0:.0f}, y0 {box.y0:.0f}, x1 {box.x1:.0f}, y1 {box.y1:.0f}"
        return draw_box(shown, box), f"{corners} of {shown.width} x {shown.height} pixels", f"{box.score:.3f}"

    def drawing(self, prompt: str, count: int, temperature: float) -> list[tuple[Image.Image, str]]:
        """Images with their scores as captions."""
        text, n = _text(prompt, "a prompt"), int(_number(count, "How many", *COUNTS))
        drawn: Any = self.predictor.draw([text], n=n, temperature=_number(temperature, "Temperature", *TEMPERATURES))
        images = drawn if n == 1 else drawn[0]
        return [(image, f"score {image.info['score']:.3f}") for image in images]

    def _read(self, image: str | None) -> Image.Image:
        """The image as the predictor reads files."""
        if not image:
            raise UserError("No image: choose one first.")
        inside = image.startswith("data:")
        return self.predictor.read_image(decode_base64(image) if inside else Path(image).read_bytes())


def draw_box(image: Image.Image, box: Box) -> Image.Image:
    """A copy of an image with the box drawn on it, its line inside the box."""
    shown = image.copy()
    width = max(2, max(shown.size) // 100)
    x1, y1 = max(box.x0, box.x1 - 1), max(box.y0, box.y1 - 1)  # right and bottom are outside
    ImageDraw.Draw(shown).rectangle((box.x0, box.y0, x1, y1), outline=BOX_COLOR, width=width)
    return shown


def build(predictor: OFAPredictor, folder: Path, can_draw: bool) -> gr.Blocks:
    """The page of a model.

    Args:
        folder: for images: those of the examples, and gradio's of visitors. can_draw: whether there is a VQGAN.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "visitors")
    answers = Answers(predictor)
    with gr.Blocks(title="OFA", analytics_enabled=False) as page:
        gr.Markdown(f"## OFA: `{Path(predictor.description.source).name}`")
        _anything(answers, folder)
        _caption(answers, folder)
        _question(answers, folder)
        _grounding(answers, folder)
        _drawing(answers, can_draw)
    return page.queue(max_size=WAITING)


def serve(page: gr.Blocks, host: str, port: int) -> str:
    """Starts to serve the page in a thread of its own; its address. Raises UserError when the port is taken."""
    theme = gr.themes.Default(font=FONTS[0], font_mono=FONTS[1])
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, theme=theme, css=CSS, footer_links=[], run_history=False, share=False,
            ssr_mode=False, pwa=False, mcp_server=False, quiet=True, prevent_thread_lock=True, max_file_size=UPLOAD,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"Port {port} of {host} cannot be used: choose another with --port.") from error
    return str(address)


def _anything(answers: Answers, folder: Path) -> None:
    image = _image_box("Image (optional)")
    instruction = gr.Textbox(label="Instruction", placeholder="what does the image describe?", render=False)
    says = (
        "Follows any instruction. `<bin_3>` and `<code_7>` are location and image tokens, in instructions and answers."
    )
    _tab(
        "Anything", says, "Run", answers.anything, [image, instruction], _text_boxes("Answer"),
        examples.instructions(folder),
    )  # fmt: skip


def _caption(answers: Answers, folder: Path) -> None:
    rows = [[case.image] for case in examples.captions(folder)]
    _tab(
        "Caption",
        "Describes the image.",
        "Describe",
        answers.caption,
        [_image_box()],
        _text_boxes("Caption"),
        rows,
    )


def _question(answers: Answers, folder: Path) -> None:
    question = gr.Textbox(label="Question", placeholder="what color is the zero?", render=False)
    label = "Candidates, one per line (optional)"
    candidates = gr.Textbox(label=label, lines=3, max_lines=6, render=False)
    says = "With candidates, the answer is the best of them, and the score its probability among them."
    rows = [
        [case.image, case.text, "\n".join(case.candidates) if number % 2 else ""]
        for number, case in enumerate(examples.questions(folder))
    ]
    _tab(
        "Question",
        says,
        "Answer",
        answers.question,
        [_image_box(), question, candidates],
        _text_boxes("Answer"),
        rows,
    )


def _grounding(answers: Answers, folder: Path) -> None:
    phrase = gr.Textbox(label="Phrase", placeholder="the red zero", render=False)
    found = gr.Image(label="Box", format="png", height=HEIGHT, interactive=False, buttons=["download"], render=False)
    rows = [[case.image, case.text] for case in examples.phrases(folder)]
    _tab(
        "Grounding", "Finds what the phrase describes in the image.", "Find", answers.grounding,
        [_image_box(), phrase], [found, *_text_boxes("Coordinates")], rows,
    )  # fmt: skip


def _drawing(answers: Answers, can_draw: bool) -> None:
    if not can_draw or not answers.predictor.vocab.num_codes:
        with gr.Tab("Drawing"):
            gr.Markdown(NO_VQGAN if answers.predictor.vocab.num_codes else NO_CODES)
        return
    prompt = gr.Textbox(label="Prompt", placeholder="a red zero", render=False)
    count = NumberSlider(*COUNTS, value=4, step=1, label="How many", render=False)
    drawn = gr.Gallery(
        label="Drawings", format="png", columns=3, height=420, elem_id="drawings", buttons=["download"], render=False
    )
    temperature = NumberSlider(*TEMPERATURES, value=1.0, step=0.1, label="Temperature", render=False)
    says = "Generates images from the prompt. A lower temperature gives plainer, more similar images."
    rows = [[text, 4, examples.TEMPERATURE] for text in examples.PROMPTS]
    _tab("Drawing", says, "Draw", answers.drawing, [prompt, count, temperature], [drawn], rows)


def _tab(
    name: str,
    says: str,
    button: str,
    answer: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
    rows: Sequence[Sequence[Any]],
) -> None:
    """A tab: inputs on the left, outputs on the right; in the shorter column rows of inputs to click on."""
    with gr.Tab(name):
        gr.Markdown(says)
        with gr.Row():
            with gr.Column() as left:
                for item in inputs:
                    item.render()
                pressed = gr.Button(button, variant="primary")
            with gr.Column() as right:
                for item in outputs:
                    item.render()
            with right if all(isinstance(item, gr.Textbox) for item in outputs) else left:
                gr.Examples([list(row) for row in rows], inputs, label="Examples", api_visibility="private")
        triggers = [
            pressed.click,
            *(item.submit for item in inputs if isinstance(item, gr.Textbox) and item.lines == 1),
        ]
        # One visitor at a time on all tabs: the model's caches and random numbers are shared.
        gr.on(
            triggers, _politely(answer), inputs, outputs, api_name=name.lower(), concurrency_limit=1,
            concurrency_id="model", show_progress="minimal",
        )  # fmt: skip


def _politely(answer: Callable[..., Any]) -> Callable[..., Any]:
    """Shows a user's mistake as a sentence on the page, not as a stack trace in the log."""

    @functools.wraps(answer)
    def answered(*values: Any) -> Any:
        try:
            return answer(*values)
        except ValueError as error:
            raise _notice(one_sentence(error)) from error
        except (MemoryError, RuntimeError) as error:
            if not _is_lack_of_memory(error):
                raise
            raise _notice("Out of memory: request less, or choose a smaller image.") from error

    return answered


def _is_lack_of_memory(error: BaseException) -> bool:
    """Whether Python, the GPU or PyTorch on the CPU ran out of memory; the last has no type of its own."""
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)


def _notice(sentence: str) -> gr.Error:
    return gr.Error(html.escape(sentence), title="Error", print_exception=False)


def _image_box(label: str = "Image") -> gr.Image:
    return ImageBox(type="filepath", label=label, height=HEIGHT, sources=["upload"], buttons=[], render=False)


def _text_boxes(label: str) -> list[gr.Textbox]:
    return [gr.Textbox(label=name, interactive=False, render=False) for name in (label, "Score, from 0 to 1")]


def _said(prediction: Any) -> tuple[str, str]:
    return prediction.text, f"{prediction.score:.3f}"


def _text(text: str | None, what: str) -> str:
    if not (text or "").strip():
        raise UserError(f"No text: enter {what} first.")
    return _short(text, what)


def _number(value: Any, what: str, least: float, most: float) -> float:
    """A number between two others, both included; UserError for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{what} is {quoted(value)}: choose a number from {least} to {most}.")
    return value


def _short(text: str | None, what: str) -> str:
    """The text, '' for None; UserError for one that would keep all visitors waiting."""
    if len(text or "") > LONGEST:
        raise UserError(f"The text is too long: {what} may have {LONGEST:,} characters.")
    return text or ""
