"""The web page: answers of the demo model, mistakes, and a browser that clicks through every tab."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import gradio
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import demo
from data.boxes import box_iou, parse_box
from digits import examples, scene
from digits.legibility import legibility
from digits.words import DigitSpec
from models import web_page
from models.predictor import Box, OFAPredictor
from tests.programs import interpreter

ROOT = Path(__file__).parents[1]
PATIENCE = 120  # seconds for an answer in the browser


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def predictor():
    return OFAPredictor.load(demo.CHECKPOINT, "cpu", vqgan=demo.find_vqgan(demo.CHECKPOINT, None))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """The page's examples and their right answers."""
    folder = tmp_path_factory.mktemp("cases")
    return SimpleNamespace(
        captions=examples.captions(folder), questions=examples.questions(folder), phrases=examples.phrases(folder)
    )


@pytest.fixture(scope="module")
def address(predictor, tmp_path_factory):
    """Where the page of the demo model is served."""
    page = web_page.build(predictor, tmp_path_factory.mktemp("page"), can_draw=True)
    yield web_page.serve(page, "127.0.0.1", free_port())
    page.close()


@pytest.fixture(scope="module")
def ask(address, tmp_path_factory):
    """Calls the function of a tab: its outputs."""
    client = Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))

    def call(tab, *values):
        given = [handle_file(value) if str(value).endswith(".png") else value for value in values]
        return client.predict(*given, api_name=f"/{tab}")

    return call


def test_captions_are_right(ask, cases):
    said = [ask("caption", case.image) for case in cases.captions]
    assert sum(text == case.truth for (text, _), case in zip(said, cases.captions, strict=True)) >= 4
    assert all(0 < float(score) <= 1 for _, score in said)


def test_questions_are_answered(ask, cases):
    written = [ask("question", case.image, case.text, "")[0] for case in cases.questions]
    lines = ["\n".join(case.candidates) for case in cases.questions]
    chosen = [ask("question", c.image, c.text, names)[0] for c, names in zip(cases.questions, lines, strict=True)]
    truths = [case.truth for case in cases.questions]
    assert sum(map(str.__eq__, written, truths)) >= 3 and sum(map(str.__eq__, chosen, truths)) >= 3
    assert all(answer in case.candidates for answer, case in zip(chosen, cases.questions, strict=True))
    assert ask("question", cases.questions[0].image, cases.questions[0].text, " no \n\nno")[0] == "no"
    assert ask("question", cases.questions[0].image, cases.questions[0].text, None)[0] == written[0]


def test_phrases_are_found(ask, cases):
    overlaps = []
    for case in cases.phrases:
        drawn, corners, score = ask("grounding", case.image, case.text)
        found = [float(part.split()[1]) for part in corners.partition(" of ")[0].split(", ")]
        assert Image.open(drawn).getcolors(2**20) != Image.open(case.image).getcolors(2**20) and 0 < float(score) <= 1
        truth = parse_box(case.truth, examples.SIDE, examples.SIDE)
        overlaps.append(box_iou(torch.tensor([found]), torch.tensor([truth])).item())
    assert sum(overlap > 0.4 for overlap in overlaps) >= 2, overlaps


def test_images_are_drawn(ask):
    for count in (1, 3):
        drawn = ask("drawing", "a red zero", count, 1.0)
        assert len(drawn) == count and all(item["caption"].startswith("score 0.") for item in drawn)
        assert len({Image.open(item["image"]).size for item in drawn}) == 1


def test_drawings_show_what_the_prompt_says(ask):
    torch.manual_seed(0)
    right = []
    for prompt in examples.PROMPTS:
        _, colour, digit = prompt.split()
        images = [Image.open(item["image"]) for item in ask("drawing", prompt, 4, examples.TEMPERATURE)]
        found = legibility(images, [DigitSpec(colour, digit, "center")] * 4, scene.Box(0, 0, *images[0].size))
        right.append((found.digit, found.colour))
    assert sum(digit >= 0.5 for digit, _ in right) >= 3 and all(colour >= 0.5 for _, colour in right), right


def test_any_instruction(ask, cases):
    case = cases.captions[0]
    assert ask("anything", case.image, "what does the image describe?") == ask("caption", case.image)
    assert ask("anything", None, "what does the image describe?")[0]


MISTAKES = [
    ("caption", [None], "No image: choose one first."),
    ("question", [None, "where is it?", ""], "No image: choose one first."),
    ("question", ["red.png", "  ", ""], "No text: enter a question first."),
    ("grounding", ["red.png", ""], "No text: enter a phrase first."),
    ("drawing", ["", 2, 1.0], "No text: enter a prompt first."),
    ("anything", [None, ""], "No text: enter an instruction first."),
    ("anything", [None, None], "No text: enter an instruction first."),
    ("question", ["red.png", None, ""], "No text: enter a question first."),
    ("grounding", ["red.png", None], "No text: enter a phrase first."),
    ("grounding", ["red.png", "a one " * 2000], "The text is too long: a phrase may have 10,000 characters."),
    ("question", ["red.png", "where?", "a" * 10001], "The text is too long: the candidates may have 10,000 characters"),
    ("drawing", [None, 2, 1.0], "No text: enter a prompt first."),
    ("drawing", ["a one", None, 1.0], "How many is None: choose a number from 1 to 9."),
    ("drawing", ["a one", [1], 1.0], "How many is [1]: choose a number from 1 to 9."),
    ("drawing", ["a one", 10**9, 1.0], "How many is 1000000000: choose a number from 1 to 9."),
    ("drawing", ["a one", 1, "1"], "Temperature is &#x27;1&#x27;: choose a number from 0.1 to 1.5."),
    ("drawing", ["a one", 1, 0], "Temperature is 0: choose a number from 0.1 to 1.5."),
    ("caption", ["broken.png"], "The image cannot be used: the image cannot be decoded: not a format"),
    ("grounding", ["floats.png", "a one"], "The image cannot be used: the image has floating point numbers as pixels"),
    ("anything", ["bomb.png", "what is it?"], "The image cannot be used: the image has "),
]


def test_mistakes_are_sentences(ask, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "red").save("red.png")
    Image.new("F", (20, 20), 0.5).save("floats.png", "TIFF")
    Path("broken.png").write_bytes(b"no image")
    shutil.copy(ROOT / "tests" / "cases" / "bomb.png", "bomb.png")
    for tab, values, sentence in MISTAKES:
        with pytest.raises(AppError) as caught:
            ask(tab, *values)
        assert caught.value.message.startswith(sentence) and caught.value.message.endswith(".")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["gray16.png", "rgba_black_on_transparent.png", "exif6.jpg"])
def test_images_are_read_as_the_predictor_does(ask, name, tmp_path, predictor):
    """Upright, on white, 16 bits scaled: an image's box is drawn on what the model sees."""
    case = ROOT / "tests" / "cases" / name
    shutil.copy(case, tmp_path / f"{name}.png")
    drawn, corners, _ = ask("grounding", tmp_path / f"{name}.png", "a red zero")
    seen = predictor.read_image(case)
    assert corners.endswith(f"of {seen.width} x {seen.height} pixels")
    box = Box(*(float(part.split()[1]) for part in corners.partition(" of ")[0].split(", ")), 1.0)
    assert Image.open(drawn).convert("RGB").tobytes() == web_page.draw_box(seen, box).tobytes()


def test_limits_of_uploads_and_of_the_queue(address, predictor, tmp_path, other_page):
    def upload(size):
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(size)
        request = urllib.request.Request(
            f"{address.rstrip('/')}/gradio_api/upload", body + b"\r\n--x--\r\n",
            {"Content-Type": "multipart/form-data; boundary=x"},
        )  # fmt: skip
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as reply:
            return reply.status

    assert upload(10**6) == 200
    with pytest.raises(urllib.error.HTTPError, match="413"):
        upload(51 * 2**20)
    page = web_page.build(predictor, tmp_path, can_draw=False)
    assert page._queue.max_size == web_page.WAITING


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")],
)
def test_lack_of_memory_is_a_sentence(error):
    def fail():
        raise error

    with pytest.raises(gradio.Error, match="Out of memory"):
        web_page._politely(fail)()


def test_other_errors_are_not_hidden():
    with pytest.raises(RuntimeError, match="shapes"):
        web_page._politely(lambda: (_ for _ in ()).throw(RuntimeError("shapes")))()


def test_sigterm_removes_what_visitors_uploaded(tmp_path):
    port = free_port()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [interpreter(), "demo.py", f"--port={port}", "--device=cpu"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert str(port) in running.stdout.readline()
        assert list(tmp_path.glob("ofa_page_*/*"))
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    assert not list(tmp_path.glob("ofa_page_*"))


def test_what_is_drawn_after_the_end_is_removed_too(monkeypatch):
    """A request that is computed while the page stops writes its images when the folder is gone."""
    calls = []
    monkeypatch.setattr(demo.atexit, "register", lambda *args, **options: calls.append((args, options)))
    with demo._visitors_folder() as folder:
        (folder / "upload.png").touch()
    assert not folder.exists()
    (folder / "visitors").mkdir(parents=True)
    (((remove, *args), options),) = calls
    remove(*args, **options)
    assert not folder.exists()
    remove(*args, **options)  # nothing there


def test_mistakes_hold_no_html():
    def refuse(text):
        raise ValueError(text)

    with pytest.raises(gradio.Error) as caught:
        web_page._politely(refuse)("<b>")
    assert caught.value.message == "&lt;b&gt;"


def test_visitors_wait_for_one_another(address, ask, cases, predictor, monkeypatch):
    running, most = [], []

    def slow(*_):
        running.append(1)
        most.append(len(running))
        time.sleep(0.2)
        running.pop()
        return SimpleNamespace(text="done", score=1.0)

    monkeypatch.setattr(predictor, "generate", slow)
    monkeypatch.setattr(predictor, "answer", slow)
    other = Client(address, verbose=False)
    jobs = [
        other.submit(handle_file(cases.captions[0].image), "where?", "", api_name="/question"),
        other.submit(None, "x", api_name="/anything"),
    ]
    assert ask("anything", None, "y")[0] == "done" and [job.result()[0] for job in jobs] == ["done"] * 2
    assert len(most) == 3 and max(most) == 1


@pytest.fixture
def other_page(monkeypatch, tmp_path):
    """Puts gradio's folder of the page in `address` back after a second page was built."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


def test_without_a_vqgan_the_tab_says_so(predictor, tmp_path, other_page):
    page = web_page.build(predictor, tmp_path, can_draw=False)
    assert web_page.NO_VQGAN in [block.value for block in page.blocks.values() if hasattr(block, "value")]
    assert "drawing" not in [function.api_name for function in page.fns.values()]


def test_nothing_is_reported(address):
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and os.environ["HF_HUB_DISABLE_TELEMETRY"] in ("1", "True")
    assert address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("size", [(40, 30), (600, 900)])
def test_the_box_is_drawn_inside_its_edges(size):
    image = Image.new("RGB", size)
    width, height = size
    edges = (width // 4, height // 5, width // 2, height // 2)
    shown = web_page.draw_box(image, Box(*map(float, edges), 0.5))
    assert shown.getbbox() == edges and image.getbbox() is None
    assert shown.getpixel((width * 3 // 8, height * 7 // 20)) == (0, 0, 0)
    assert web_page.draw_box(image, Box(10.0, 5.0, 10.0, 5.0, 0.5)).size == size  # an empty one


def test_defaults_and_documented_commands():
    args = demo.parse_args([])
    assert (args.host, args.checkpoint) == ("127.0.0.1", ROOT / "checkpoints" / "ofa_demo.pt")
    page = (ROOT / "docs" / "web_page.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("python demo.py")]
    assert len(lines) == 3 and all(demo.parse_args(shlex.split(line)[2:]) for line in lines)


def test_the_vqgan_is_found_beside_the_checkpoint(tmp_path):
    checkpoint, folder = tmp_path / "net.pt", tmp_path / "net_vqgan"
    folder.mkdir()
    (folder / "last.ckpt").touch()
    assert demo.find_vqgan(checkpoint, None) is None
    (folder / "model.yaml").touch()
    files = folder / "last.ckpt", folder / "model.yaml"
    assert demo.find_vqgan(checkpoint, None) == demo.find_vqgan(tmp_path / "x.pt", list(map(str, files))) == files


def test_wrong_command_lines(tmp_path, capsys, monkeypatch, other_page):
    def said(*argv):
        assert demo.main(argv) == 2
        return capsys.readouterr().err

    assert "nowhere.ckpt: name the VQGAN's" in said("--vqgan", "nowhere.ckpt", "nowhere.yaml")
    assert "gone.pt" in said(f"--checkpoint={tmp_path}/gone.pt")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert said(f"--port={port}", "--device=cpu").endswith(
            f"Port {port} of 127.0.0.1 cannot be used: choose another with --port.\n"
        )
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "models.web_page")
    monkeypatch.delattr("models.web_page")
    assert said() == "demo.py: error: The web page needs gradio: pip install -r requirements-extras.txt.\n"


class Browser:
    """A headless Chromium on the page."""

    def __init__(self, address, profile):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in (
            "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,1043",
            "no-proxy-server", "no-first-run", f"user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.driver.get(address)
        self.panel = self.driver

    def find(self, css):
        return self.panel.find_elements("css selector", css)

    def wait(self, condition):
        """The first true value of the condition."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        ignored = (NoSuchElementException, StaleElementReferenceException, StopIteration, IndexError)
        return WebDriverWait(self.driver, PATIENCE, 0.1, ignored).until(lambda _: condition())

    def open(self, tab):
        self.panel = self.driver
        self.wait(lambda: [button for button in self.find("button[role=tab]") if button.text == tab])[0].click()
        panels = "div[role=tabpanel]"
        self.panel = self.wait(lambda: next(p for p in self.find(panels) if p.is_displayed()))

    def field(self, label):
        """The text field of that label."""
        marked = next(x for x in self.find("label") if x.text.split("\n")[0].strip() == label)
        return marked.find_element("css selector", "textarea")

    def example(self, number, image=True, field=None):
        """Clicks an example and waits for its image and the text in a field."""
        self.wait(lambda: self.find(".gallery-item, tr.tr-body"))[number].click()
        self.wait(lambda: not image or self.loaded("[data-testid=image] img"))
        self.wait(lambda: not field or self.answer(field))

    def loaded(self, css):
        """Images that are there to be seen."""
        return [image for image in self.find(css) if image.get_property("naturalWidth")]

    def large_images(self):
        """Addresses of the images that are no thumbnails."""
        return [image.get_property("src") for image in self.loaded("img") if image.size["width"] > 150]

    def press(self, name):
        next(button for button in self.find("button.primary") if button.text == name).click()

    def answer(self, label):
        return self.wait(lambda: self.field(label).get_property("value"))

    def requests(self):
        """Addresses that the page asked for."""
        messages = [json.loads(line["message"])["message"] for line in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture
def browser(address, tmp_path, monkeypatch):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        reason = "needs the Debian packages chromium and chromium-driver"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    monkeypatch.setenv("SE_OFFLINE", "true")  # selenium downloads nothing
    started = Browser(address, tmp_path / "profile")
    yield started
    started.driver.quit()


def test_every_tab_in_the_browser(browser, cases, address, tmp_path):
    def shoot(tab):
        assert browser.driver.save_screenshot(str(tmp_path / f"{tab}.png"))

    browser.open("Anything")
    browser.example(0, field="Instruction")
    browser.press("Run")
    assert browser.answer("Answer") == cases.captions[0].truth
    shoot("Anything")

    browser.open("Caption")
    browser.example(0)
    browser.press("Describe")
    assert browser.answer("Caption") == cases.captions[0].truth
    assert float(browser.answer("Score, from 0 to 1")) > 0.5
    shoot("Caption")

    browser.open("Question")
    browser.example(1, field="Candidates, one per line (optional)")
    browser.press("Answer")
    assert browser.answer("Answer") in cases.questions[1].candidates
    shoot("Question")

    browser.open("Grounding")
    browser.press("Find")  # with nothing to look at
    browser.panel = browser.driver
    browser.wait(lambda: "No image: choose one first." in browser.find(".toast-body")[0].text)
    browser.open("Grounding")
    browser.example(0, field="Phrase")
    browser.press("Find")
    assert browser.answer("Coordinates").startswith("x0 ")
    given, drawn = browser.wait(lambda: len(found := browser.large_images()) == 2 and found)
    assert given != drawn
    shoot("Grounding")

    browser.open("Drawing")
    browser.example(0, image=False, field="Prompt")
    browser.press("Draw")
    assert len(browser.wait(lambda: len(found := browser.loaded("#drawings img")) >= 4 and found)) == 4
    shoot("Drawing")

    errors = [line for line in browser.driver.get_log("browser") if line["level"] == "SEVERE"]
    outside = [url for url in browser.requests() if not url.startswith((address, "data:", "blob:", "chrome:"))]
    assert not errors and not outside
