"""The server's answers over HTTP, a sentence for each bad request, keys, and the description of the API."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from models.predictor import OFAPredictor
from models.predictor.predictor import Prediction
from models.server import app
from models.server.methods import LONGEST, METHODS
from tests.models.server.servers import encoded, eventually, opened, picture

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("one_thread")


def batches(server):
    """Method -> number of its batches so far."""
    text = server.request("GET", "/metrics")[2].decode()
    return {name: float(count) for name, count in re.findall(r'ofa_batch_size_count{method="(\w+)"} (\S+)', text)}


def test_32_clients_get_what_the_predictor_says(server, predictor):
    asked = {
        "caption": [{"image": encoded(n)} for n in range(7)]
        + [{"image": base64.encodebytes(picture(7)).decode()}],  # in lines
        "answer": [{"image": encoded(n), "question": f"where is the {n}?", "candidates": ["a", "b"]} for n in range(8)],
        "ground": [{"image": encoded(n), "phrase": f"the {n}", "n_best": 2} for n in range(8)],
        "generate": [{"prompt": f"what is {n}?", "decoding": {"beam": 2, "max_len_b": 4}} for n in range(8)],
    }
    before = batches(server)
    calls = [(name, body) for name, bodies in asked.items() for body in bodies]
    with server.gate.closed():
        server.occupy()
        waiting = [lambda name=name, body=body: server.ask(name, body) for name, body in calls]
        found = server.all_at_once([*waiting, lambda: eventually(lambda: opened(server, 32))])[:32]
    assert {status for status, _ in found} == {200}
    after = batches(server)
    assert all(after[name] == before.get(name, 0) + 1 for name in asked)
    for (name, body), (_, answer) in zip(calls, found, strict=True):
        _check(predictor, name, body, answer)


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


def test_scores_are_at_most_one(server):
    odd = {"image": encoded(), "phrase": "red", "decoding": {"unkpen": -100_000, "lenpen": -100}}
    status, answer = server.ask("ground", odd)
    assert status == 200 and all(0 <= score <= 1 for score in answer["scores"])


def test_what_the_model_cannot_do_is_said_without_paths(server, predictor, monkeypatch):
    status, answer = server.ask("classify", {"image": encoded()})
    assert (status, answer["error"]) == (422, "ofa_demo.pt has no list of classes: pass names=[...].")
    monkeypatch.setattr(predictor, "vqgan", None)
    status, answer = server.ask("draw", {"prompt": "a one"})
    assert status == 422 and answer["error"].startswith("This server cannot draw")


def test_scores_that_are_no_numbers(server, predictor, monkeypatch):
    monkeypatch.setattr(predictor, "summarise", lambda texts, **_: [Prediction("x", float("nan"))] * len(texts))
    assert server.ask("summarise", {"text": "a b c"}) == (
        422, {"error": "The model gives no finite score with these decoding options: choose others."},
    )  # fmt: skip


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
