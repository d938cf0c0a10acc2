"""The server's answers over HTTP, and what it does with bad input, slow clients, clients that vanish, and load."""

import base64
import http.client
import io
import json
import re
import socket
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import demo
from models.predictor import OFAPredictor
from models.predictor.predictor import Prediction
from models.server import app, listening
from models.server.methods import LONGEST, METHODS
from tests.models.server.servers import PATIENCE, Running, eventually, head, picture, read_all
from utils.options import find_vqgan

ROOT = Path(__file__).parents[3]
MOST = 200_000  # bytes of a request
pytestmark = pytest.mark.usefixtures("one_thread_module")


@pytest.fixture(scope="module")
def one_thread_module():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def predictor():
    vqgan = find_vqgan(demo.CHECKPOINT, None)
    return OFAPredictor.load(demo.CHECKPOINT, "cpu", vqgan=vqgan, max_image_pixels=10**6)


@pytest.fixture(scope="module")
def server(predictor):
    running = Running(predictor, queue=40, max_bytes=MOST)
    yield running
    running.close()


@pytest.fixture
def start(predictor):
    """Starts servers with limits of their own."""
    started = []

    def begin(**limits):
        started.append(Running(predictor, **limits))
        return started[-1]

    yield begin
    for running in started:
        running.close()


def encoded(number=0):
    return base64.b64encode(picture(number)).decode()


def batches(server):
    """Method -> number of its batches so far."""
    text = server.request("GET", "/metrics")[2].decode()
    return {name: float(count) for name, count in re.findall(r'ofa_batch_size_count{method="(\w+)"} (\S+)', text)}


def test_32_clients_get_what_the_predictor_says(server, predictor):
    asked = {
        "caption": [{"image": encoded(n)} for n in range(8)],
        "answer": [{"image": encoded(n), "question": f"where is the {n}?", "candidates": ["a", "b"]} for n in range(8)],
        "ground": [{"image": encoded(n), "phrase": f"the {n}", "n_best": 2} for n in range(8)],
        "generate": [{"prompt": f"what is {n}?", "decoding": {"beam": 2, "max_len_b": 4}} for n in range(8)],
    }
    before = batches(server)
    calls = [(name, body) for name, bodies in asked.items() for body in bodies]
    with server.gate.closed():
        server.service.batcher.submit(("entail", ""), METHODS["entail"].question(  # keeps the model busy
            predictor, {"image": picture(), "hypothesis": "x"}))  # fmt: skip
        eventually(lambda: server.gate.batches)
        waiting = [lambda name=name, body=body: server.ask(name, body) for name, body in calls]
        found = server.all_at_once([*waiting, lambda: eventually(lambda: _opened(server, 32))])[:32]
    assert {status for status, _ in found} == {200}
    after = batches(server)
    assert all(after[name] == before.get(name, 0) + 1 for name in asked)
    for (name, body), (_, answer) in zip(calls, found, strict=True):
        _check(predictor, name, body, answer)


def _opened(server, count):
    """Opens the gate when so many requests are waiting."""
    if server.service.batcher.waiting < count:
        return False
    server.gate.open.set()
    return True


def _check(predictor, name, body, answer):
    image = picture() if "image" not in body else base64.b64decode(body["image"])
    if name == "ground":
        boxes = predictor.ground(image, body["phrase"], 2)
        assert answer["scores"] == pytest.approx([box.score for box in boxes], rel=1e-3)
        assert answer["boxes"] == [pytest.approx([box.x0, box.y0, box.x1, box.y1]) for box in boxes]
        return
    said = {
        "caption": lambda: predictor.caption(image),
        "answer": lambda: predictor.answer(image, body["question"], body["candidates"]),
        "generate": lambda: predictor.generate(None, body["prompt"], **body["decoding"]),
    }[name]()
    key = {"generate": "text"}.get(name, name)
    assert answer == {key: said.text, "score": pytest.approx(said.score, rel=1e-3)}


def test_the_other_methods(server, predictor):
    image, text = picture(3), "a red zero is on the left ."
    said = server.ask("entail", {"image": encoded(3), "hypothesis": text, "premise": "it is red"})[1]
    assert said["entailment"] == predictor.entail(image, text, "it is red").text
    named = server.ask("classify", {"image": encoded(3), "names": ["red", "zero", "left"], "top_k": 2})[1]
    assert named["labels"] == [x.text for x in predictor.classify(image, ["red", "zero", "left"], 2)]
    assert server.ask("summarise", {"text": text})[1]["summary"] == predictor.summarise(text).text


def test_drawings(server):
    body = {"prompt": "a red zero", "n": 2, "seed": 5, "decoding": {"temperature": 0.3}}
    first, second, other = server.all_at_once(
        [lambda: server.ask("draw", body)] * 2 + [lambda: server.ask("draw", {**body, "seed": 6})]
    )
    assert first == second and first[0] == 200 and other[1] != first[1]
    images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in first[1]["pictures"]]
    assert [image.format for image in images] == ["PNG"] * 2 and len(first[1]["scores"]) == 2
    del body["seed"]
    assert server.ask("draw", body)[1] != server.ask("draw", body)[1]


def form(*parts):
    """A multipart body of (name, file name or None, content)."""
    body = b""
    for name, file, content in parts:
        named = f'; filename="{file}"' if file else ""
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"
    return body + b"--b--\r\n"


FORM = ("Content-Type", "multipart/form-data; boundary=b")


def test_forms(server):
    data = ("image", "photo.png", picture())
    question, names = ("question", None, "où est-il ?".encode()), ("candidates", None, b'["left", "right"]')
    asked = {"image": encoded(), "question": "où est-il ?", "candidates": ["left", "right"]}
    assert server.ask("answer", form(data, question, names), FORM) == server.ask("answer", asked)
    assert server.ask("caption", form(("image", None, encoded().encode())), FORM)[0] == 200


JSON_BAD = [
    (400, "caption", b"", "The request cannot be read: it is not a JSON object."),
    (400, "caption", b"{", "The request cannot be read: it is not a JSON object."),
    (400, "caption", b"[]", "The request cannot be read: it is not a JSON object."),
    (400, "caption", b"\xff\xfe{}", "The request cannot be read: it is not a JSON object."),
    (400, "caption", b"[" * 5000, "The request cannot be read: it is not a JSON object."),
    (400, "caption", b'{"image": "a", "image": "b"}', "The request cannot be read: it has the key 'image' twice."),
    (400, "caption", b'{"a": ' + b"9" * 5000 + b"}", "The request cannot be read"),
    (422, "caption", {}, "There is no image: a request needs one."),
    (422, "caption", {"image": None}, "There is no image: a request needs one."),
    (422, "caption", {"image": 3}, "image must be base64 of an image file, not 3."),
    (422, "caption", {"image": ""}, "image must be base64 of an image file; paths and URLs are"),
    (422, "caption", {"image": "/etc/passwd.png"}, "image must be base64 of an image file; paths and URLs are"),
    (422, "caption", {"image": "/etc/passwd="}, "The image cannot be used: the image cannot be decoded"),
    (422, "caption", {"image": "http://x/a.png"}, "image must be base64 of an image file; paths and URLs are"),
    (422, "caption", {"image": "file:///etc/hosts"}, "image must be base64 of an image file"),
    (422, "caption", {"image": "AAAA"}, "The image cannot be used: the image cannot be decoded"),
    (422, "caption", {"image": encoded(), "imgae": 1}, "There is no field 'imgae': choose among image, decoding."),
    (422, "caption", {"image": encoded(), "decoding": {"baem": 1}}, "Decoding options: there is no decoding option"),
    (422, "caption", {"image": encoded(), "decoding": []}, "decoding must be an object of decoding options"),
    (422, "caption", {"image": encoded(), "decoding": {"beam": True}}, "Decoding options: beam cannot be True"),
    (422, "caption", {"image": encoded(), "decoding": {"beam": 10**9}}, "decoding: beam may be at most 32"),
    (422, "caption", {"image": encoded(), "decoding": {"beam": 0}}, "Decoding options: --beam 0: choose at least 1."),
    (422, "caption", {"image": encoded(), "decoding": {"max_len_b": 10**400}}, "decoding: max_len_b may be at most"),
    (422, "caption", {"image": encoded(), "decoding": {"retain_dropout": True}}, "decoding: retain_dropout cannot be"),
    (422, "caption", b'{"image": "AAAA", "decoding": {"temperature": NaN}}', "decoding: temperature must be a finite"),
    (422, "caption", b'{"image": "AAAA", "decoding": {"lenpen": 1e999}}', "decoding: lenpen must be a finite number."),
    (422, "answer", {"image": encoded(), "question": " "}, "question is a text without words."),
    (422, "answer", {"image": encoded(), "question": ["a"]}, "question must be a text, not a list with 1 entries."),
    (422, "answer", {"image": encoded(), "question": "a" * (LONGEST + 1)}, "question is too long"),
    (422, "answer", b'{"image": "AAAA", "question": "\\ud800"}', "question holds half of a surrogate pair"),
    (422, "answer", {"image": encoded(), "question": "a", "candidates": "a"}, "candidates must be a list of at most"),
    (422, "answer", {"image": encoded(), "question": "a", "candidates": ["a", ""]}, "candidates[1] is empty"),
    (422, "answer", {"image": encoded(), "question": "a", "candidates": [1]}, "candidates[0] must be a text, not 1."),
    (422, "classify", {"image": encoded(), "names": []}, "names is empty: give a list of texts."),
    (422, "classify", {"image": encoded(), "top_k": 1.5}, "top_k must be an integer from 1 to 1000, not 1.5."),
    (422, "classify", b'{"image": "AAAA", "top_k": NaN}', "top_k must be an integer from 1 to 1000, not nan."),
    (422, "ground", {"image": encoded(), "phrase": "a", "n_best": True}, "n_best must be an integer from 1 to 32"),
    (422, "draw", {"prompt": "a one", "n": 10**9}, "n must be an integer from 1 to 16, not 1000000000."),
    (422, "draw", {"prompt": "a one", "vqgan": ["/etc/passwd", "/etc/passwd"]}, "There is no field 'vqgan'"),
    (422, "summarise", {"text": 5}, "text must be a text, not 5."),
    (422, "generate", {"prompt": "a " * 3000}, ""),
]  # fmt: skip


def test_bad_requests_get_a_sentence(server, monkeypatch):
    for status, method, body, sentence in JSON_BAD:
        found, answer = server.ask(method, body)
        assert (found, list(answer)) == (status, ["error"]), (method, body, answer)
        said = answer["error"]
        assert said.startswith(sentence) and said.endswith(".") and "\n" not in said and len(said) < 2100, said
    monkeypatch.setattr(app, "VALUES", 1000)
    assert server.ask("classify", {"image": encoded(), "names": ["a"] * 1000})[0] == 413
    bomb = base64.b64encode((ROOT / "tests" / "cases" / "bomb.png").read_bytes()).decode()
    assert server.ask("caption", {"image": bomb})[1]["error"].startswith("The image cannot be used: the image has ")
    assert server.ask("caption", {"image": encoded()})[0] == 200


FORMS_BAD = [
    (400, "caption", b"", FORM[1], "The form cannot be read: its end is missing."),
    (400, "caption", b"--b", FORM[1], "The form cannot be read: its end is missing."),
    (400, "caption", b"nothing", FORM[1], ""),
    (400, "caption", form(("image", "a.png", b"x"))[:-20], FORM[1], ""),
    (400, "caption", form(("image", "a.png", b"x")), "multipart/form-data", "The form cannot be read: Missing"),
    (400, "caption", form(("image", "a.png", b"x")), "multipart/form-data; boundary=", ""),
    (400, "caption", form(("image", None, b"x"), ("image", None, b"x")), FORM[1], "The form has the field"),
    (400, "caption", form(("image", "a", b"x"), ("b", "b", b"x")), FORM[1], "The form cannot be read: Too many files"),
    (400, "caption", form(("decoding", None, b"{'beam': 1}")), FORM[1], "The field decoding is not JSON"),
    (400, "caption", form(("decoding", None, b'{"a": 1, "a": 2}')), FORM[1], "The field decoding is not JSON"),
    (422, "answer", form(("question", "a.txt", b"what?")), FORM[1], "question is a file: send it as"),
    (422, "caption", form(("image", "a.png", b"")), FORM[1], "image is empty: send the bytes of an image file."),
    (422, "caption", form(("file", "a.png", b"x")), FORM[1], "There is no field 'file': choose among image, decoding."),
    (422, "caption", form(("image", None, b"/etc/passwd.png")), FORM[1], "image must be base64 of an image file"),
    (415, "caption", b"image=x", "application/x-www-form-urlencoded", "The content type is 'application/x-www-form-"),
    (415, "caption", b"{}", "text/plain", "The content type is 'text/plain': send application/json or multipart"),
    (415, "caption", b"{}", "", "The content type is ''"),
]  # fmt: skip


def test_bad_forms_get_a_sentence(server):
    for status, method, body, kind, sentence in FORMS_BAD:
        found, answer = server.ask(method, body, ("Content-Type", kind))
        assert (found, list(answer)) == (status, ["error"]), (body, answer)
        assert answer["error"].startswith(sentence) and answer["error"].endswith("."), answer


def test_addresses_that_are_not_there(server):
    assert [server.request(*line)[0] for line in (("GET", "/nothing"), ("GET", "/caption"), ("POST", "/health"))] == [
        404, 405, 405,
    ]  # fmt: skip
    assert json.loads(server.request("GET", "/../etc/passwd")[2]) == {
        "error": "There is nothing at this address: see /docs."
    }


def test_too_large_whatever_the_head_says(server):
    large = {"image": "A" * MOST}
    status, answer = server.ask("caption", large)
    assert status == 413 and answer["error"].startswith("The request is too large: 200,000 bytes are taken")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request(
        "POST", "/caption", iter([b"A" * 50_000] * 20), {"Content-Type": "application/json"}, encode_chunked=True
    )
    assert connection.getresponse().status == 413
    connection.close()
    with server.connect(head("caption", 10**15, "Expect: 100-continue")) as client:  # nothing is waited for
        assert read_all(client).startswith(b"HTTP/1.1 413 ")
    with server.connect(
        head("caption", 2) + b'{}{"image": 1}\r\n\r\n'
    ) as client:  # more than was said: another request
        said = b"".join(iter(lambda: client.recv(2**16), b""))
        assert said.startswith(b"HTTP/1.1 422 ") and b"HTTP/1.1 400 " in said
    with server.connect(head("caption", -1)) as client:
        assert read_all(client).startswith(b"HTTP/1.1 400 ")
    assert server.service.held == 0


def test_a_full_queue(start):
    server = start(queue=2, batch_size=1)
    body = {"prompt": "what?", "decoding": {"beam": 1, "max_len_b": 2}}

    def refused():
        eventually(lambda: server.service.places.taken == 2)
        status, headers, content = server.request(
            "POST", "/generate", json.dumps(body), {"Content-Type": "application/json"}
        )
        assert status == 429 and headers["Retry-After"] == "1"
        assert json.loads(content) == {"error": "Too many requests are waiting: try again in a second."}
        assert server.request("GET", "/health")[0] == 200
        server.gate.open.set()

    with server.gate.closed():
        first, second, _ = server.all_at_once([lambda: server.ask("generate", body)] * 2 + [refused])
    assert first[0] == second[0] == 200 and first == second
    assert server.ask("generate", body) == first and server.service.places.taken == 0


def test_requests_that_are_held_at_once_are_bounded(start):
    server = start(max_bytes=2000)
    clients = [server.connect(head("caption", 2000) + b"x" * 1999) for _ in range(16)]
    eventually(lambda: server.service.held == 16 * 1999)
    status, _ = server.ask("generate", {"prompt": "a" * 1000})
    assert status == 429 and server.ask("generate", {})[0] == 422
    for client in clients:
        client.close()
    eventually(lambda: server.service.held == 0)


def test_clients_that_vanish_cost_nothing(server):
    body = json.dumps({"prompt": "who?", "decoding": {"beam": 1, "max_len_b": 2}}).encode()
    with server.gate.closed():
        staying = server.connect(head("generate", len(body)) + body)
        eventually(lambda: server.gate.batches)
        for _ in range(5):
            server.connect(head("generate", len(body)) + body).close()
        unfinished = server.connect(head("generate", len(body)) + body[:5])
        unfinished.close()
        eventually(lambda: server.service.places.taken == 1 and not server.service.held - len(body))
        server.gate.open.set()
        assert staying.recv(100).startswith(b"HTTP/1.1 200 ")
        staying.close()
        assert server.ask("generate", {"prompt": "me?", "decoding": {"beam": 1, "max_len_b": 2}})[0] == 200
        assert len(server.gate.batches) == 2
    text = server.request("GET", "/metrics")[2].decode()
    assert float(re.search(r'ofa_requests_total{method="generate",status="499"} (\S+)', text)[1]) == 6


def test_slow_clients_do_not_block_others(server):
    body = json.dumps({"prompt": "slowly"}).encode()
    slow = [server.connect() for _ in range(50)]
    text = head("generate", len(body)) + body
    for position in range(0, len(text) - 1):
        for client in slow[:: 1 if position < 10 else 25]:
            client.sendall(text[position : position + 1])
        if position % 50 == 0:
            began = time.monotonic()
            assert server.ask("generate", {"prompt": "quickly", "decoding": {"beam": 1, "max_len_b": 1}})[0] == 200
            assert time.monotonic() - began < PATIENCE / 4
    slow[0].sendall(text[-1:])
    assert slow[0].recv(100).startswith(b"HTTP/1.1 200 ")
    for client in slow:
        client.close()
    eventually(lambda: server.service.held == 0)


def test_time_limits(start, monkeypatch):
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.3)
    server = start(timeout=0.5)
    with server.connect() as silent, server.connect(head("caption", 5) + b"{") as late:
        assert silent.recv(10) == b""
        assert late.recv(100).startswith(b"HTTP/1.1 408 ")
    with server.connect() as dripping, pytest.raises(OSError):  # a byte now and then does not keep it
        for _ in range(1000):
            dripping.sendall(b"P")
            time.sleep(0.02)
    with server.gate.closed():
        status, answer = server.ask("generate", {"prompt": "when?"})
        assert status == 504 and answer["error"].startswith("The answer takes too long")
        eventually(lambda: server.service.places.taken == 0)
        assert server.ask("generate", {"prompt": "and now?"})[0] == 504
        server.gate.open.set()
    eventually(lambda: server.service.batcher.waiting == 0)
    assert len(server.gate.batches) == 1  # the second one was dropped


def test_the_key(start):
    server = start(api_key="secret")
    body = {"prompt": "who?", "decoding": {"beam": 1, "max_len_b": 1}}
    wrong = ["", "secret", "Bearer", "Bearer secre", "Bearer secret2", "Basic secret", "Bearer s\xe9cret", "Bearer  "]
    for value in wrong:
        status, answer = server.ask("generate", body, ("Authorization", value))
        assert status == 401 and answer["error"].startswith("The key is missing or wrong"), value
    assert server.ask("generate", body)[0] == 401 and server.request("GET", "/metrics")[0] == 401
    assert server.ask("generate", body, ("Authorization", "Bearer secret"))[0] == 200
    assert server.request("GET", "/metrics", None, {"Authorization": "bearer secret"})[0] == 200
    assert server.request("GET", "/health")[0] == 200
    status, headers, _ = server.request("POST", "/generate", b"x" * 10**6)
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert server.request("GET", "/nothing")[0] == 404


def test_one_bad_item_does_not_fail_its_neighbours(server, predictor, monkeypatch):
    generate = predictor.generate

    def failing(images, prompts, **decoding):
        if any(text.startswith("bad") for text in prompts):
            raise ZeroDivisionError("a fault")
        return generate(images, prompts, **decoding)

    monkeypatch.setattr(predictor, "generate", failing)
    quick = {"decoding": {"beam": 1, "max_len_b": 2}}
    prompts = ["one?", "much too long " * 900, "two?", "bad", "three?"]
    with server.gate.closed():
        calls = [lambda text=text: server.ask("generate", {"prompt": text, **quick}) for text in prompts]
        found = server.all_at_once([*calls, lambda: eventually(lambda: _opened(server, 4))])[:5]
    assert [status for status, _ in found] == [200, 422, 200, 500, 200]
    assert found[3][1] == {"error": "The server has failed on this request: its log says why."}
    alone = [generate(None, prompts[n], **quick["decoding"]) for n in (0, 2, 4)]
    assert [found[n][1]["text"] for n in (0, 2, 4)] == [x.text for x in alone]


def test_scores_that_are_no_numbers(server, predictor, monkeypatch):
    monkeypatch.setattr(predictor, "summarise", lambda texts, **_: [Prediction("x", float("nan"))] * len(texts))
    assert server.ask("summarise", {"text": "a b c"}) == (
        422, {"error": "The model gives no finite score with these decoding options: choose others."},
    )  # fmt: skip


def test_a_graceful_stop_finishes_what_is_queued(start):
    server = start()
    body = {"prompt": "who?", "decoding": {"beam": 1, "max_len_b": 2}}
    data = json.dumps(body).encode()
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    kept.request("GET", "/health")
    kept.getresponse().read()

    def stop():
        eventually(lambda: server.service.places.taken == 3)
        half = server.connect(head("generate", len(data)) + data[:-1])
        eventually(lambda: server.service.held > 3 * len(data))
        server.stop()
        half.sendall(data[-1:])
        assert half.recv(100).startswith(b"HTTP/1.1 503 ")
        eventually(lambda: _is_refused(server.port))
        assert server.thread.is_alive()
        server.gate.open.set()

    with server.gate.closed():
        *found, _ = server.all_at_once([lambda: server.ask("generate", body)] * 3 + [stop])
    assert [status for status, _ in found] == [200] * 3
    server.thread.join(PATIENCE)
    assert not server.thread.is_alive() and not server.service.ready
    kept.close()


def _is_refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_model_that_has_failed_is_not_ready(start, predictor, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("CUDA error: device-side assert triggered")

    server = start()
    monkeypatch.setattr(predictor, "generate", failing)
    assert json.loads(server.request("GET", "/health")[2]) == {"ready": True, "model": "ofa_demo.pt"}
    assert server.ask("generate", {"prompt": "who?"})[0] == 500
    assert server.request("GET", "/health")[0] == 503 and server.ask("generate", {"prompt": "who?"})[0] == 503


def test_the_description_and_the_page(server):
    described = json.loads(server.request("GET", "/openapi.json")[2])
    assert {"/health", "/metrics", *(f"/{name}" for name in METHODS)} == set(described["paths"])
    for name, method in METHODS.items():
        operation = described["paths"][f"/{name}"]["post"]
        assert operation["requestBody"]["content"]["application/json"]["schema"] == method.request_schema
        assert {"200", "400", "401", "413", "422", "429", "503", "504"} <= operation["responses"].keys()
        assert operation["responses"]["200"]["content"]["application/json"]["schema"] == method.answer_schema
    page = server.request("GET", "/docs")[2].decode()
    assert all(f"POST /{name}<" in page for name in METHODS) and not re.search(r"<script|https?:|//", page)


def test_every_method_of_the_predictor_has_an_address():
    own = {name for name, value in vars(OFAPredictor).items() if callable(value) and not name.startswith("_")}
    assert METHODS.keys() == own - {"load", "prepare", "read_image"}
