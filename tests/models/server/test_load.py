"""Requests that are too large, too many or too late, slow clients, clients that vanish, faults, and stopping."""

import http.client
import json
import re
import socket
import time

import pytest
import torch

from models.predictor.predictor import Prediction
from models.server import listening
from tests.models.server.servers import MOST, PATIENCE, eventually, head, opened, read_all

pytestmark = pytest.mark.usefixtures("one_thread")


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


def gone(server):
    """How many requests were dropped because their clients were gone."""
    text = server.request("GET", "/metrics")[2].decode()
    found = re.search(r'ofa_requests_total{method="generate",status="499"} (\S+)', text)
    return float(found[1]) if found else 0


def test_clients_that_vanish_cost_nothing(server):
    before = gone(server)
    body = json.dumps({"prompt": "who?", "decoding": {"beam": 1, "max_len_b": 2}}).encode()
    with server.gate.closed():
        staying = server.connect(head("generate", len(body)) + body)
        eventually(lambda: server.gate.batches)
        for _ in range(5):
            server.connect(head("generate", len(body)) + body).close()
        server.connect(head("generate", len(body)) + body[:5]).close()
        eventually(lambda: gone(server) == before + 6)
        assert server.service.places.taken == 1 and server.service.held == len(body)
        server.gate.open.set()
        assert staying.recv(100).startswith(b"HTTP/1.1 200 ")
        staying.close()
        assert server.ask("generate", {"prompt": "me?", "decoding": {"beam": 1, "max_len_b": 2}})[0] == 200
        assert len(server.gate.batches) == 2


def test_clients_without_the_key_that_vanish_are_no_fault(start, capfd):
    server = start(api_key="secret")
    for _ in range(3):
        server.connect(head("generate", 1000) + b"{").close()

    def counted() -> str:
        return str(server.request("GET", "/metrics", None, {"Authorization": "Bearer secret"})[2])

    eventually(lambda: re.search(r'status="499"[^}]*} 3', counted()))
    assert 'status="500"' not in counted() and "Traceback" not in capfd.readouterr().err


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


def test_memory_that_runs_out_is_a_sentence_and_forgotten(start, predictor, monkeypatch, capsys):
    server = start(batch_size=8)
    allowed, sizes = [3], []

    def generate(images, prompts, **_):
        sizes.append(predictor.batch_size)
        if predictor.batch_size > allowed[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [Prediction("x", 0.5)] * len(prompts)

    monkeypatch.setattr(predictor, "generate", generate)
    assert server.ask("generate", {"prompt": "a"}) == server.ask("generate", {"prompt": "b"})
    assert sizes == [8, 4, 2] * 2 and capsys.readouterr().err.count("--batch-size 8 does not fit") == 1
    allowed[0] = 0
    status, answer = server.ask("generate", {"prompt": "c"})
    assert status == 503 and answer["error"].startswith("The request does not fit into the memory of the server")
    assert server.service.ready


def test_answers_are_sent_at_once(server):
    """Without TCP_NODELAY, the second packet of an answer waits 40 ms for the client's word about the first."""
    with server.connect():
        connections = server.server.server_state.connections
        eventually(lambda: connections)
        accepted = next(iter(connections)).transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_connections_are_bounded(start, monkeypatch):
    monkeypatch.setattr(listening, "connections", lambda: 3)
    server = start()
    clients = [server.connect() for _ in range(3)]
    eventually(lambda: len(server.server.server_state.connections) == 3)
    with pytest.raises(OSError):
        server.request("GET", "/health")
    clients[0].close()
    eventually(lambda: len(server.server.server_state.connections) == 2)
    assert server.request("GET", "/health")[0] == server.request("HEAD", "/health")[0] == 200
    for client in clients:
        client.close()


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
        assert half.recv(100).startswith(b"HTTP/1.1 503 ")
        eventually(lambda: _is_refused(server.port))
        assert server.thread.is_alive()
        server.gate.open.set()

    with server.gate.closed():
        line = ("POST", "/generate", data, {"Content-Type": "application/json"})
        *found, _ = server.all_at_once([lambda: server.request(*line)] * 3 + [stop])
    assert [(status, headers["Connection"]) for status, headers, _ in found] == [(200, "close")] * 3
    server.thread.join(PATIENCE)
    assert not server.thread.is_alive() and not server.service.ready
    kept.close()


def test_a_second_signal_does_not_wait(start):
    server = start()
    body = json.dumps({"prompt": "who?"}).encode()
    with server.gate.closed(), server.connect(head("generate", len(body)) + body):
        eventually(lambda: server.gate.batches)
        server.stop()
        server.stop()
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()
        assert not server.service.close()  # the model still computes


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
        server.occupy()
        calls = [lambda text=text: server.ask("generate", {"prompt": text, **quick}) for text in prompts]
        found = server.all_at_once([*calls, lambda: eventually(lambda: opened(server, 5))])[:5]
    assert [status for status, _ in found] == [200, 422, 200, 500, 200]
    assert found[3][1] == {"error": "The server has failed on this request: its log says why."}
    alone = [generate(None, prompts[n], **quick["decoding"]) for n in (0, 2, 4)]
    assert [found[n][1]["text"] for n in (0, 2, 4)] == [x.text for x in alone]
