"""The server against the predictor: captions a second over HTTP, at several numbers of clients, and in a loop.

    python -m benchmarks.server [--checkpoint checkpoints/ofa_demo.pt] [--clients 1 8 32] [--requests 400]

Prints, for each number of clients, requests a second, the median and the 99th percentile of their latency, and the mean
size of a batch; above them what `OFAPredictor.caption` does when it is called for one image after the other with the
bytes of its file, and with batches of them. All sides answer the same images in one run, and each gets the same number
of threads of PyTorch. Clients are threads of this process and send the next request when the last one is answered; on
few cores they take time from the server, as they do not when they run elsewhere.
"""

import argparse
import http.client
import io
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.predictor import OFAPredictor

ROOT = Path(__file__).parents[1]
BOUNDARY = "benchmark"


def photos(count: int, side: int) -> list[bytes]:
    """PNG files."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def form(photo: bytes) -> bytes:
    """The body of a request."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    return head.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()


def client(port: int, bodies: Sequence[bytes]) -> list[tuple[float, float]]:
    """Start and end of each of a client's requests, one after the other on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    times = []
    for body in bodies:
        began = time.perf_counter()
        connection.request("POST", "/caption", body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {content!r}")
        times.append((began, time.perf_counter()))
    return times


def batches(port: int) -> tuple[float, float]:
    """How many batches of captions the server has computed, and how many requests were in them."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = dict(re.findall(r'^ofa_batch_size_(count|sum)\{method="caption"\} (\S+)', text, re.M))
    return float(found.get("count", 0)), float(found.get("sum", 0))


def measure(port: int, clients: int, files: Sequence[bytes]) -> None:
    """Prints the line of a number of clients."""
    bodies = [form(photo) for photo in files]
    before = batches(port)
    with ThreadPoolExecutor(clients) as pool:
        lists = list(pool.map(lambda number: client(port, bodies[number::clients]), range(clients)))
    after = batches(port)
    times = [pair for pairs in lists for pair in pairs]
    seconds = max(end for _, end in times) - min(start for start, _ in times)
    waits = sorted(end - start for start, end in times)
    size = (after[1] - before[1]) / (after[0] - before[0])
    row(f"server, {clients} clients", len(times) / seconds, waits, f"{size:5.1f}")


def row(name: str, rate: float, waits: Sequence[float], size: str) -> None:
    """Prints a line."""
    late = waits[math.ceil(0.99 * len(waits)) - 1]
    print(f"{name:24} {rate:10.1f} {1000 * statistics.median(waits):10.1f} {1000 * late:10.1f} {size:>8}", flush=True)


def loop(predictor: OFAPredictor, files: Sequence[bytes], size: int) -> None:
    """Prints the line of the predictor, called in a loop for so many images at a time."""
    predictor.caption(list(files[:size]))
    waits = []
    began = time.perf_counter()
    for start in range(0, len(files), size):
        one = time.perf_counter()
        predictor.caption(list(files[start : start + size]))
        waits.append(time.perf_counter() - one)
    row(f"loop, {size} at a time", len(files) / (time.perf_counter() - began), sorted(waits), f"{size:5.1f}")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.server", description="Captions over HTTP and in a loop.")
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints" / "ofa_demo.pt"), help="default: the demo's")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--requests", type=int, default=400, help="of each line (default %(default)s)")
    parser.add_argument("--side", type=int, default=128, help="of the images in pixels (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="requests per batch (default %(default)s)")
    parser.add_argument("--batch-wait-ms", type=int, default=5, help="of the server (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    files = photos(args.requests, args.side)
    print(
        f"{Path(args.checkpoint).name}, {args.device}, {args.dtype}, {args.threads} threads, {args.requests} requests"
    )
    print(f"{'':24} {'a second':>10} {'median ms':>10} {'99 % ms':>10} {'batch':>8}")
    predictor = OFAPredictor.load(args.checkpoint, args.device, dtype=args.dtype, batch_size=args.batch_size)
    loop(predictor, files, 1)
    loop(predictor, files, args.batch_size)
    del predictor
    flags = [f"--{name}={getattr(args, name.replace('-', '_'))}" for name in ("device", "dtype", "batch-size")]
    command = [sys.executable, "serve.py", args.checkpoint, "--port=0", f"--batch-wait-ms={args.batch_wait_ms}", *flags]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            port = int(re.findall(r":(\d+) ", running.stdout.readline())[0])
            client(port, [form(photo) for photo in files[:3]])
            for clients in args.clients:
                measure(port, clients, files)
        finally:
            running.terminate()


if __name__ == "__main__":
    main()
