"""The web page: `python demo.py [--checkpoint FILE]`, then open the address it prints in a browser.

Needs gradio (requirements-extras.txt), no internet and no fairseq. Exit code 2: a wrong command line or file.
"""

import ofa_names  # isort: skip  # noqa: F401  (first: a user's `data` or `utils` is a sentence)

import argparse
import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.errors import UserError, one_sentence
from utils.options import find_vqgan, program_name
from utils.program import sigterm_interrupts

CHECKPOINT = Path(__file__).parent / "checkpoints" / "ofa_demo.pt"


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; SystemExit on a wrong one."""
    parser = argparse.ArgumentParser(program_name("demo.py"), description="Try a trained model in the browser.")
    parser.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT,
        help="fairseq file, Hugging Face folder or safetensors file (default: checkpoints/ofa_demo.pt)",
    )  # fmt: skip
    parser.add_argument(
        "--vqgan", nargs=2, metavar=("CHECKPOINT", "YAML"),
        help="the VQGAN's last.ckpt and model.yaml, for drawing (default: NAME_vqgan/ next to NAME.pt, if it exists)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default %(default)s: this machine)")
    parser.add_argument("--port", type=int, default=7860, help="port to serve on (default %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C or SIGTERM; 2 if it cannot."""
    args = parse_args(sys.argv[1:] if argv is None else argv)
    try:
        from models import web_page  # after the command line: gradio and torch take seconds to import
        from models.predictor import OFAPredictor

        vqgan = find_vqgan(args.checkpoint, args.vqgan)
        predictor = OFAPredictor.load(args.checkpoint, args.device, vqgan=vqgan)
        with sigterm_interrupts(), _visitors_folder() as folder:
            page = web_page.build(predictor, folder, can_draw=vqgan is not None)
            print(f"{web_page.serve(page, args.host, args.port)} (stop with Ctrl-C)", flush=True)
            page.block_thread()
    except (UserError, OSError) as error:
        print(f"{program_name('demo.py')}: error: {one_sentence(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        return 0
    else:
        return 0
    return 2


@contextlib.contextmanager
def _visitors_folder() -> Iterator[Path]:
    """A folder for the images of the page and of its visitors, of which nothing is left behind."""
    folder = Path(tempfile.mkdtemp(prefix="ofa_page_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        yield folder
    finally:
        for _ in range(1000):  # a request that is still computed in a thread may write its images meanwhile
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # not by way of Python's end, which crashes where a thread still computes an answer
