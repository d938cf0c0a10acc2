"""A server in a thread, a model that waits, and clients."""

import base64
import http.client
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from PIL import Image

from models.server import listening
from models.server.methods import METHODS
from models.server.service import Limits, Service

PATIENCE = 60
MOST = 200_000  # bytes of a request to the shared server


class Gate:
    """Stands in front of the model: what it computes waits while the gate is closed."""

    def __init__(self, service):
        self.open, self.batches, self.fitting = threading.Event(), [], service.fitting
        self.open.set()
        service.fitting = self

    def __call__(self, call):
        self.batches.append(call)
        assert self.open.wait(PATIENCE)
        return self.fitting(call)

    @contextmanager
    def closed(self):
        self.open.clear()
        self.batches.clear()
        try:
            yield self
        finally:
            self.open.set()


class Running:
    """A server that runs in a thread."""

    def __init__(self, predictor, **limits):
        self.service = Service(predictor, Limits(**limits))
        self.gate = Gate(self.service)
        self.listener = listening.listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.server = listening.server(self.service)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()

    def stop(self):
        """As a signal does."""
        self.server.handle_exit(15, None)

    def close(self):
        self.gate.open.set()
        self.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive() and self.service.close()

    def occupy(self):
        """Makes the model busy, while the gate is closed."""
        question = METHODS["summarise"].question(self.service.predictor, {"text": "a b"})
        self.service.batcher.submit(question.key, question)
        eventually(lambda: self.gate.batches)

    def request(self, method, path, body=None, headers=(), timeout=PATIENCE):
        """Status, headers and content of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def ask(self, method, body, *headers, **fields):
        """Status and JSON of an answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **dict(headers)}
        status, _, content = self.request("POST", f"/{method}", data, given, **fields)
        return status, json.loads(content)

    def connect(self, sent=b""):
        """A socket on which something was sent."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        client.sendall(sent)
        return client

    def all_at_once(self, calls):
        """Results of calls in threads."""
        with ThreadPoolExecutor(len(calls)) as pool:
            return [future.result() for future in [pool.submit(call) for call in calls]]


def eventually(condition):
    """Waits until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def picture(number=0, side=48):
    """A PNG file."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def encoded(number=0):
    return base64.b64encode(picture(number)).decode()


def opened(server, count):
    """Opens the gate when so many requests are waiting."""
    if server.service.batcher.waiting < count:
        return False
    server.gate.open.set()
    return True


def head(method, length, *lines):
    """The head of a request."""
    lines = ("Host: x", "Content-Type: application/json", f"Content-Length: {length}", *lines)
    return "\r\n".join([f"POST /{method} HTTP/1.1", *lines, "", ""]).encode()


def read_all(client):
    """What a server sends until it closes the connection."""
    parts = []
    while part := client.recv(2**16):
        parts.append(part)
    return b"".join(parts)
