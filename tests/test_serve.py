"""serve.py: its command line, its start and its end."""

import json
import re
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import serve
from models.server import listening, service
from tests import programs
from tests.models.server.servers import PATIENCE, eventually, head

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, save_small_network):
    return save_small_network(tmp_path_factory.mktemp("serve") / "small.pt", _name="caption")


def lines_of(running):
    """The first line that a program prints, and all of its lines so far."""
    eventually(lambda: running.poll() is not None or "\n" in running._output.read_text())
    return running._output.read_text().splitlines()


def fetch(url, body=None):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", "Authorization": "Bearer k-1"})
    with opener.open(request, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_starts_and_a_signal_ends_it_when_all_is_answered(checkpoint, number):
    running = programs.start("serve.py", checkpoint, "--port=0", "--device=cpu", OFA_API_KEY="k-1")
    (line,) = lines_of(running)
    address = re.fullmatch(r"(http://127\.0\.0\.1:\d+) \(stop with Ctrl-C\)", line)[1]
    assert fetch(f"{address}/health") == {"ready": True, "model": "small.pt"}
    body = json.dumps({"prompt": "who?", "decoding": {"beam": 2, "max_len_b": 100, "min_len": 100}}).encode()
    assert fetch(f"{address}/generate", body)["text"]
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=PATIENCE) as client:
        client.sendall(head("generate", len(body), "Authorization: Bearer k-1") + body)
        time.sleep(0.05)
        running.send_signal(number)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    output, _ = running.communicate()
    assert running.returncode == 0 and output.splitlines() == [line]
    with pytest.raises(urllib.error.URLError):
        fetch(f"{address}/health")


class Ended(Exception):
    """Instead of serving."""


@pytest.fixture
def started(monkeypatch, checkpoint):
    """The service that a command line starts."""
    monkeypatch.delenv(serve.KEY, raising=False)

    def end(service, listener):
        raise Ended(service)

    monkeypatch.setattr(listening, "serve", end)

    def start(*argv):
        with pytest.raises(Ended) as caught:
            serve.main([str(checkpoint), "--device=cpu", "--port=0", *argv])
        begun = caught.value.args[0]
        begun.close()
        return begun

    return start


def test_flags_become_limits(started, capsys):
    assert started().limits == service.Limits()
    flags = ("--batch-size=3", "--batch-wait-ms=0", "--queue=4", "--max-request-bytes=5", "--timeout=6", "--api-key=k")
    begun = started(*flags, "--max-image-pixels=99")
    assert begun.limits == service.Limits(3, 0.0, 4, 5, 6.0, "k")
    assert begun.predictor.batch_size == 3 and begun.predictor.shared.max_image_pixels == 99
    assert not capsys.readouterr().err


def test_a_server_for_everyone_without_a_key_is_warned_of(started, capsys):
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)):
        started(f"--host={host}")
        sentence = f"serve.py: everyone who can reach {host} can use the model: set --api-key.\n"
        assert capsys.readouterr().err == (sentence if warned else "")
    started("--host=0.0.0.0", "--api-key=k")
    assert not capsys.readouterr().err


def test_wrong_command_lines(checkpoint, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv(serve.KEY, raising=False)
    loaded = []
    monkeypatch.setattr(serve, "load_predictor", loaded.append)

    def said(*argv):
        assert serve.main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("serve.py: error: ") and len(error.splitlines()) == 1
        return error

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sentence = f"Port {port} of 127.0.0.1 cannot be used: choose another with --port.\n"
        assert said(str(checkpoint), f"--port={port}").endswith(sentence)
    for host in ("300.1.2.3", "no-such-host.invalid", "", "a b", "ü" * 100, "\0"):
        assert "--host" in said(str(checkpoint), "--port=0", f"--host={host}")
    assert "cannot be used" in said(str(checkpoint), "--port=0", "--host=192.0.2.1")  # not of this machine
    assert "name the VQGAN's" in said(str(checkpoint), "--port=0", "--vqgan", "a.ckpt", "a.yaml")
    assert not loaded  # all of this takes no time
    monkeypatch.undo()
    assert "gone.pt" in said(str(tmp_path / "gone.pt"), "--port=0")
    for flags in (["--candidates=gone.txt"], ["--set=ans2label_file=gone.txt"]):
        assert "gone.txt cannot be read" in said(str(checkpoint), "--port=0", "--device=cpu", *flags)
    broken = tmp_path / "broken.yaml"
    broken.write_text("[")
    vqgan = ROOT / "checkpoints" / "ofa_demo_vqgan" / "last.ckpt"
    demo = str(ROOT / "checkpoints" / "ofa_demo.pt")
    assert "broken.yaml" in said(demo, "--port=0", "--device=cpu", "--vqgan", str(vqgan), str(broken))
    assert "pass --batch-size" in said(str(checkpoint), "--port=0", "--set=batch_size=3")
    for name in ("app", "listening"):
        monkeypatch.delitem(sys.modules, f"models.server.{name}")
        monkeypatch.delattr(f"models.server.{name}")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    sentence = "serve.py: error: The server needs the package fastapi: pip install -e .[serve].\n"
    assert said(str(checkpoint), "--port=0") == sentence


@pytest.mark.parametrize(
    "argv", [
        ["--port=65536"], ["--port=-1"], ["--port=x"], ["--queue=0"], ["--timeout=0"], ["--timeout=nan"],
        ["--timeout=1e9"], ["--batch-size=0"], ["--batch-wait-ms=-1"], ["--max-request-bytes=0"], ["--api-key="],
        ["--api-key= "], ["--api-key=a b"], ["--api-key=\u00e4"], ["--api-key=a\nb"], ["--candidates="], ["another.pt"],
    ],
)  # fmt: skip
def test_flags_that_are_refused(argv, capsys):
    with pytest.raises(SystemExit) as end:
        serve.main(["x.pt", *argv])
    assert end.value.code == 2 and "serve.py: error: " in capsys.readouterr().err


def test_the_environment_holds_the_key(monkeypatch, started):
    monkeypatch.setenv(serve.KEY, "from-there")
    assert serve.parse_args(["x.pt"]).api_key == "from-there"
    assert serve.parse_args(["x.pt", "--api-key=k"]).api_key == "k"
    monkeypatch.setenv(serve.KEY, "")
    with pytest.raises(SystemExit):
        serve.parse_args(["x.pt"])


def test_the_vqgan_is_found_beside_the_checkpoint(monkeypatch):
    found = []
    monkeypatch.setattr(serve, "load_predictor", lambda args: found.append(args.vqgan) or (_ for _ in ()).throw(Ended))
    with pytest.raises(Ended):
        serve.main([str(ROOT / "checkpoints" / "ofa_demo.pt"), "--port=0"])
    assert found == [(ROOT / "checkpoints/ofa_demo_vqgan/last.ckpt", ROOT / "checkpoints/ofa_demo_vqgan/model.yaml")]
