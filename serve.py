"""The server: `python serve.py CHECKPOINT [--port 7861]` answers other programs, as JSON over HTTP (docs/serving.md).

Needs the extra `serve` (pip install -e .[serve]), no fairseq. SIGTERM or Ctrl-C finishes the requests that are queued.
Exit code 0: stopped, 2: a wrong command line or file.
"""

import ofa_names  # isort: skip  # noqa: F401  (first: a user's `data` or `utils` is a sentence)

import argparse
import contextlib
import ipaddress
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from models.model_flags import add_model_flags, add_pixel_flag, load_predictor
from utils.options import find_vqgan, not_negative, positive, program_name
from utils.program import program

KEY = "OFA_API_KEY"  # where a key comes from without --api-key
PIXELS = 2**26  # two images of this size are decoded at once


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; SystemExit on a wrong one."""
    parser = argparse.ArgumentParser(program_name("serve.py"), description="Answer other programs over HTTP.")
    parser.add_argument("checkpoint", type=Path, help="fairseq file, Hugging Face folder or safetensors file")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default %(default)s: this machine)")
    parser.add_argument("--port", type=_port, default=7861, help="port to serve on, 0 = any (default %(default)s)")
    parser.add_argument("--api-key", help=f"key that clients must send (default: the environment variable {KEY})")
    parser.add_argument("--batch-size", type=positive, default=16, help="requests per batch (default %(default)s)")
    parser.add_argument(
        "--batch-wait-ms", type=not_negative, default=5,
        help="milliseconds that a request waits for others (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--queue", type=positive, default=128, help="requests at a time; more are told to wait (default %(default)s)"
    )
    parser.add_argument(
        "--max-request-bytes",
        type=positive,
        default=16 * 2**20,
        help="larger requests are refused (default %(default)s)",
    )
    parser.add_argument("--timeout", type=_seconds, default=60.0, help="seconds for a request (default %(default)s)")
    parser.add_argument("--candidates", help="file of candidate answers (JSON, pickle, or one per line)")
    parser.add_argument(
        "--vqgan", nargs=2, metavar=("CHECKPOINT", "YAML"),
        help="the VQGAN's last.ckpt and model.yaml, for drawing (default: NAME_vqgan/ next to NAME.pt, if it exists)",
    )  # fmt: skip
    add_pixel_flag(parser, "refused", PIXELS)
    add_model_flags(parser)
    args = parser.parse_args(argv)
    if args.candidates == "":
        parser.error("--candidates is empty: name the file of the answers.")
    if args.api_key is None:
        args.api_key = os.environ.get(KEY)
    if args.api_key is not None and not (
        args.api_key.isascii() and args.api_key.isprintable() and args.api_key.split()
    ):
        parser.error(f"the key (--api-key or {KEY}) is empty or holds other characters than ASCII: choose another.")
    if args.api_key is not None and " " in args.api_key:
        parser.error(f"the key (--api-key or {KEY}) holds a space: choose another.")
    return args


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} must be a port from 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not (0 < seconds <= 86_400 and math.isfinite(seconds)):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0, at most 86400")
    return seconds


@program("serve.py")
def main(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C or SIGTERM: 0; 2 if it cannot."""
    args = parse_args(sys.argv[1:] if argv is None else argv)
    from models.server import listening  # after the command line: torch takes seconds to import
    from models.server.service import Limits, Service, check_files

    listener = listening.listen(args.host, args.port)
    with listener:
        args.vqgan = find_vqgan(args.checkpoint, args.vqgan)
        predictor = load_predictor(args)
        check_files(predictor)
        if args.api_key is None and not _loopback(listener.getsockname()[0]):
            print(
                f"{program_name('serve.py')}: everyone who can reach {args.host} can use the model: set --api-key.",
                file=sys.stderr,
            )
        limits = Limits(
            args.batch_size, args.batch_wait_ms / 1000, args.queue, args.max_request_bytes, args.timeout, args.api_key
        )
        service = Service(predictor, limits)
        print(f"{listening.address(listener)} (stop with Ctrl-C)", flush=True)
        ended = False
        with contextlib.suppress(KeyboardInterrupt):  # just before or after it serves
            ended = listening.serve(service, listener)
        if not ended:
            sys.stdout.flush()
            os._exit(0)  # not by way of Python's end, which crashes where a thread still computes an answer
    return 0


def _loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


if __name__ == "__main__":
    sys.exit(main())
