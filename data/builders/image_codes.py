"""Images to image codes and back, by the VQGAN.

    python -m utils.image_codes encode --file IN.tsv --outputs OUT.tsv --selected-cols 0,1 --code-image-size 256
    python -m utils.image_codes encode --file FOLDER --outputs OUT.tsv --code-image-size 256
    python -m utils.image_codes decode --file CODES.tsv --outputs FOLDER --selected-cols 0,1

An image that is not square has its short side resized to the code image size (Lanczos), and the center is taken.
The codes are the most likely ones; the released files were made by `--sample`. Started again after being stopped, the
program resumes; OUT.tsv appears when it is complete. `--skip-bad-rows` skips and counts images that cannot be read.
`--workers 4` starts four processes. On several machines give each its `--rank` and `--world-size` (default:
torchrun's); each writes OUT.tsv.<rank>-of-<world size>, to be joined by `cat`, in order of rank.
"""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException, spawn
from tqdm import tqdm

from data import images
from data.images import decode_base64, image_file
from data.row_index import Rows
from data.sharding import rank_slice
from data.table_files import image_files
from data.text_tables import JsonLines
from data.tsv import TsvFile
from models.text_to_image import row_generators
from models.vqgan import VQGAN, from_pil, sample_codes, to_pil
from utils.errors import BadRowError, ItemError, UserError, one_sentence, shortened
from utils.files import atomic_write, read_file
from utils.options import program_name
from utils.program import program

Work = Callable[[argparse.Namespace, int, int], None]  # flags, number of the share, number of shares
_READERS = 4  # threads that decode images while the model runs


class TsvImages:
    """Rows of a TSV file with an image column.

    Args:
        columns: "pair-id, image-id, image, text" or "image-id, image" as four or two numbers.
    Raises:
        UserError: another number of columns, or a file that cannot be read.
    """

    def __init__(self, path: Path, columns: str | None) -> None:
        if columns is None or columns.count(",") not in (1, 3):
            raise UserError(
                f"--selected-cols is {columns or 'missing'}: name 2 columns (image id, image) or 4 (pair id, image id, "
                "image, text)."
            )
        self.file = TsvFile(path, columns)

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, row: int) -> tuple[tuple[str, ...], bytes]:
        """What stands before the codes in the output, and the encoded image."""
        fields = _fields(self.file, row)
        try:
            data = decode_base64(fields[len(fields) // 2])  # column 1 of 2, column 2 of 4
        except ValueError as error:
            raise ItemError(f"{self.where(row)}: {error}; correct the row.") from error
        return (fields[:1] if len(fields) == 2 else (fields[0], fields[1], fields[3])), data

    def where(self, row: int) -> str:
        """How error messages call a row."""
        return f"{self.file.path}, line {row + 1}"


class TableImages:
    """Rows of a JSONL file: `id` and `image`, which is a path.

    Raises:
        UserError: a file that cannot be read, or without these columns.
    """

    def __init__(self, path: Path) -> None:
        self.file = JsonLines(path, ("id", "image"))

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, row: int) -> tuple[tuple[str, ...], bytes]:
        """Id and encoded image."""
        name, image = _fields(self.file, row)
        return (str(name),), image_file(image)

    def where(self, row: int) -> str:
        """How error messages call a row."""
        return f"{self.file.path}, line {row + 1}, id {shortened(repr(_fields(self.file, row)[0]), 300)}"


class FolderImages:
    """Image files below a folder, sorted; the id is the path in it without the ending.

    Raises:
        UserError: no image, or two of the same id.
    """

    def __init__(self, folder: Path) -> None:
        self.files, self.left_out = image_files(folder, recursive=True)
        if not self.files:
            raise UserError(f"There is no image in {folder}; check the path.")
        self.ids = [path.relative_to(folder).with_suffix("").as_posix() for path in self.files]
        _check_unique(self.ids, str(folder))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[tuple[str, ...], bytes]:
        """Id and encoded image."""
        return (self.ids[row],), read_file(self.files[row])

    def where(self, row: int) -> str:
        """How error messages call a row."""
        return str(self.files[row])


Images = TsvImages | TableImages | FolderImages


def _fields(file: Rows, row: int) -> tuple[Any, ...]:
    try:
        return file[row]
    except BadRowError as error:  # its advice names a flag of the trainer
        raise ItemError(f"{error.path}, {error.place}: {error.reason}; correct the row.") from error


def _check_unique(ids: Sequence[str], source: str) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise UserError(f"{source} has the id {name} twice; give every image a unique id.")
        seen.add(name)


def _images(flags: argparse.Namespace) -> Images:
    if flags.file.suffix == ".jsonl":
        return TableImages(flags.file)
    return FolderImages(flags.file) if flags.file.is_dir() else TsvImages(flags.file, flags.selected_cols)


def _read(source: Images, row: int, flags: argparse.Namespace) -> tuple[tuple[str, ...], Tensor]:
    """What stands before the codes, and (3, R, R) in [-1, 1], R = code image size or its central crop."""
    try:
        keys, data = source[row]
        image, damaged, *_ = images.decode(data, flags.max_image_pixels)
        if damaged:
            tqdm.write(f"{source.where(row)}: the image is cut off or damaged: encoding the readable part.")
        pixels = from_pil(image, flags.code_image_size)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise ItemError(f"{source.where(row)}: {error}; correct or remove it.") from error
    edge = (flags.code_image_size - flags.crop) // 2 if flags.crop else 0
    return keys, pixels[:, edge : flags.code_image_size - edge, edge : flags.code_image_size - edge]


def _read_or_skip(source: Images, row: int, flags: argparse.Namespace) -> tuple[tuple[str, ...], Tensor] | None:
    """As `_read`, but with `--skip-bad-rows` None for a row that cannot be used."""
    try:
        return _read(source, row, flags)
    except ItemError as error:
        if not flags.skip_bad_rows:
            raise
        tqdm.write(f"skipped: {error}")
        return None


def encode_share(flags: argparse.Namespace, share: int, shares: int) -> None:
    """Append the rows of a share to its part file, from the first one that it lacks."""
    source = _images(flags)
    start, stop = rank_slice(len(source), share, shares)
    part = _part(flags, share, shares)
    with open(part, "r+b" if part.exists() else "w+b") as out, ThreadPoolExecutor(_READERS) as pool:
        done, _ = whole_lines(out)
        if start + done >= stop:
            return
        vqgan = _load(flags, share)
        device = next(vqgan.parameters()).device
        with tqdm(total=stop - start, initial=done, desc=f"encode {share}", position=share, unit="image") as bar:
            for first in range(start + done, stop, flags.batch_size):
                rows = range(first, min(first + flags.batch_size, stop))
                read = zip(rows, pool.map(lambda row: _read_or_skip(source, row, flags), rows), strict=True)
                usable = {row: image for row, image in read if image is not None}
                lines = dict.fromkeys(rows, "")  # an empty one for what is skipped
                if usable:
                    pixels = torch.stack([image for _, image in usable.values()])
                    codes = _codes(vqgan, pixels.to(device), list(usable), flags).tolist()
                    for (row, (keys, _)), numbers in zip(usable.items(), codes, strict=True):
                        lines[row] = "\t".join((*keys, " ".join(map(str, numbers))))
                out.write("".join(f"{line}\n" for line in lines.values()).encode())
                out.flush()
                os.fsync(out.fileno())
                bar.update(len(rows))


@torch.no_grad()
def _codes(vqgan: VQGAN, images: Tensor, rows: Sequence[int], flags: argparse.Namespace) -> Tensor:
    """Codes (B, h * w); noise is seeded by row, so that neither batches nor processes nor a restart change it."""
    if not flags.sample:
        return vqgan.encode(images)
    generators = row_generators(flags.seed, rows, images.device)
    pairs = zip(vqgan.logits(images), generators, strict=True)
    return torch.stack([sample_codes(logits, generator).flatten() for logits, generator in pairs])


def whole_lines(out: BinaryIO) -> tuple[int, int]:
    """Cut a torn last line off, go to the end, and count the lines, and those that are empty."""
    count = empty = end = 0
    for line in out:
        if line.endswith(b"\n"):
            count, empty, end = count + 1, empty + (len(line) == 1), end + len(line)
    out.truncate(end)
    out.seek(end)
    return count, empty


def _part(flags: argparse.Namespace, share: int, shares: int) -> Path:
    """Where a share is kept until all are done; its name tells runs with other input or options apart."""
    files = (flags.file, flags.vqgan_model_path, flags.vqgan_config_path)
    stamps = [(os.path.abspath(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files]
    options = (flags.selected_cols, flags.code_image_size, flags.crop, flags.sample and flags.seed)
    digest = hashlib.sha256(repr((stamps, options, flags.sample)).encode()).hexdigest()[:8]
    return flags.outputs.with_name(f"{flags.outputs.name}.{digest}.{share}-of-{shares}.part")


def encode(flags: argparse.Namespace) -> Path:
    """Encode this rank's images; returns the file written.

    Raises:
        UserError: wrong flags, an unreadable row or file, an output that exists.
    """
    images = _images(flags)
    if isinstance(images, FolderImages) and images.left_out:
        print(images.left_out, file=sys.stderr)
    out = flags.outputs
    if flags.world_size > 1:
        out = out.with_name(f"{out.name}.{flags.rank}-of-{flags.world_size}")
    if out.exists():
        raise UserError(f"{out} exists already: delete it or choose other --outputs.")
    out.parent.mkdir(parents=True, exist_ok=True)
    shares = flags.workers * flags.world_size
    if len(images) < shares:
        raise UserError(f"{shares} processes cannot share {len(images)} images; start fewer.")
    _run(encode_share, flags)
    parts = [_part(flags, share, shares) for share in _own_shares(flags)]
    skipped = 0
    with atomic_write(out) as whole:
        for part in parts:
            with open(part, "rb") as file:
                for line in file:
                    skipped += line == b"\n"
                    whole.write(line.lstrip(b"\n"))
        if skipped == len(images):
            raise UserError(f"None of the images of {flags.file} can be used; check the file.")
    if skipped:
        print(f"{skipped} rows of {flags.file} were skipped.", file=sys.stderr)
    for part in parts:
        part.unlink()
    return out


def parse_codes(text: str, n_embed: int) -> Tensor:
    """Codes (h * w,), int64, of numbers joined by spaces; ValueError unless they are whole, in range and a square."""
    try:
        codes = torch.tensor([int(word) for word in text.split()], dtype=torch.int64)
    except (ValueError, RuntimeError) as error:
        raise ValueError("the codes are not integers separated by spaces") from error
    side = int(len(codes) ** 0.5)
    if not len(codes) or side * side != len(codes):
        raise ValueError(f"{len(codes)} codes do not make a square image")
    if int(codes.min()) < 0 or int(codes.max()) >= n_embed:
        raise ValueError(f"a code is outside 0..{n_embed - 1}")
    return codes


def image_name(text: str, ending: str = ".png") -> str:
    """File name for an id or a caption: no slashes, and never longer than file systems allow (255 bytes)."""
    name = text.replace("/", "_").replace("\0", "_")
    if len(name.encode()) + len(ending) > 200:  # room for the suffixes of unfinished files
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = name.encode()[:180].decode(errors="ignore") + "_" + digest
    return name + ending


def decode_share(flags: argparse.Namespace, share: int, shares: int) -> None:
    """Write the images of a share of the rows, but not those that exist."""
    file = TsvFile(flags.file, flags.selected_cols)
    start, stop = rank_slice(len(file), share, shares)
    targets = [flags.outputs / image_name(_fields(file, row)[0]) for row in range(start, stop)]
    rows = [row for row, target in zip(range(start, stop), targets, strict=True) if not target.exists()]
    if not rows:
        return
    vqgan = _load(flags, share)
    length = len(_row_codes(file, 0, vqgan.config.n_embed))
    with tqdm(total=len(rows), desc=f"decode {share}", position=share, unit="image") as bar:
        for first in range(0, len(rows), flags.batch_size):
            batch = rows[first : first + flags.batch_size]
            codes = [_row_codes(file, row, vqgan.config.n_embed, length) for row in batch]
            for row, image in zip(batch, to_pil(vqgan.decode(torch.stack(codes))), strict=True):
                with atomic_write(targets[row - start]) as out:
                    image.save(out, format="PNG")
            bar.update(len(batch))


def _row_codes(file: TsvFile, row: int, n_embed: int, length: int | None = None) -> Tensor:
    try:
        codes = parse_codes(_fields(file, row)[1], n_embed)
        if length is not None and len(codes) != length:
            raise ValueError(f"the row has {len(codes)} codes, the first row {length}")
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file.path}, line {row + 1}: {error}; correct the row.") from error
    return codes


def decode(flags: argparse.Namespace) -> Path:
    """Write the images of this rank's rows as PNG files named by id; returns their folder.

    Raises:
        UserError: wrong flags, a row that is no image, an id that occurs twice.
    """
    if flags.selected_cols is None or flags.selected_cols.count(",") != 1:
        raise UserError(f"--selected-cols is {flags.selected_cols or 'missing'}: name 2 columns (id, codes).")
    file = TsvFile(flags.file, flags.selected_cols)
    _check_unique([image_name(_fields(file, row)[0]) for row in range(len(file))], str(flags.file))
    flags.outputs.mkdir(parents=True, exist_ok=True)
    _run(decode_share, flags)
    return flags.outputs


def _load(flags: argparse.Namespace, share: int) -> VQGAN:
    device = flags.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda":
        device = f"cuda:{share % torch.cuda.device_count()}"
    return VQGAN.load(flags.vqgan_model_path, flags.vqgan_config_path, device)


def _own_shares(flags: argparse.Namespace) -> range:
    return range(flags.rank * flags.workers, (flags.rank + 1) * flags.workers)


def _run(work: Work, flags: argparse.Namespace) -> None:
    """Do this rank's shares, each in a process of its own if there are several; the first error ends all."""
    if flags.workers == 1:
        _work(0, work, flags, torch.get_num_threads())
        return
    threads = max(1, torch.get_num_threads() // flags.workers)
    started = spawn(_work, (work, flags, threads), nprocs=flags.workers, join=False)
    try:
        while not started.join():
            pass
    except ProcessRaisedException as error:
        if re.search("(User|Item)Error: ", str(error)):
            raise UserError(one_sentence(error)) from error
        raise
    finally:
        for process in started.processes:  # Python waits for them at its end, also after a signal
            process.terminate()


def _work(worker: int, work: Work, flags: argparse.Namespace, threads: int) -> None:
    torch.set_num_threads(threads)
    work(flags, _own_shares(flags)[worker], flags.workers * flags.world_size)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags; the spelling of the released program, with underscores, is understood."""
    parser = argparse.ArgumentParser(
        program_name("python -m utils.image_codes"), description="Turn images into VQGAN codes, and codes into images."
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--outputs", type=Path, required=True, help="TSV file (encode) or folder (decode) to write")
    common.add_argument(
        "--selected-cols", help="encode: image id, image or pair id, image id, image, text; decode: id, codes"
    )
    common.add_argument("--vqgan-model-path", type=Path, required=True, help="the VQGAN's last.ckpt")
    common.add_argument("--vqgan-config-path", type=Path, required=True, help="the VQGAN's model.yaml")
    common.add_argument("--batch-size", type=int, default=32, help="images at once (default %(default)s)")
    common.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPUs if there are any)")
    common.add_argument("--workers", type=int, default=1, help="processes on this machine (default %(default)s)")
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    common.add_argument("--rank", type=int, default=rank, help="number of this machine, from 0")
    common.add_argument("--world-size", type=int, default=world, help="number of machines")
    commands = parser.add_subparsers(dest="command", required=True)
    encoding = commands.add_parser("encode", parents=[common], help="images to codes")
    encoding.add_argument("--file", type=Path, required=True, help="folder of images, TSV or JSONL file")
    encoding.add_argument("--code-image-size", type=int, required=True, help="side of the images; 8 pixels make a code")
    encoding.add_argument(
        "--max-image-pixels",
        type=int,
        default=images.MAX_PIXELS,
        help="larger images are refused (default %(default)s)",
    )
    encoding.add_argument("--crop", type=int, help="encode the center of this side only (pretraining: 128 of 256)")
    encoding.add_argument("--skip-bad-rows", action="store_true", help="skip and count images that cannot be read")
    encoding.add_argument("--sample", action="store_true", help="draw codes as the released program does")
    encoding.add_argument("--seed", type=int, default=7, help="seed of --sample (default %(default)s)")
    decoding = commands.add_parser("decode", parents=[common], help="codes to PNG files named by id")
    decoding.add_argument("--file", type=Path, required=True, help="TSV file of codes")
    dashed = [word.replace("_", "-") if word.startswith("--") and "=" not in word else word for word in argv]
    return parser.parse_args(dashed)


def _check(flags: argparse.Namespace) -> None:
    """Raises UserError for numbers that make no sense and files that are missing."""
    for path in (flags.file, flags.vqgan_model_path, flags.vqgan_config_path):
        if not path.exists():
            raise UserError(f"There is no {path}; check the path.")
    if flags.batch_size < 1 or flags.workers < 1 or not 0 <= flags.rank < flags.world_size:
        raise UserError("--batch-size and --workers must be at least 1 and --rank below --world-size.")
    if flags.command == "encode":
        side = flags.crop or flags.code_image_size
        if side < 8 or side % 8 or side > flags.code_image_size or (flags.code_image_size - side) % 2:
            raise UserError(
                f"--code-image-size {flags.code_image_size} with --crop {flags.crop} does not make whole codes: choose "
                "multiples of 8, the crop not the larger one."
            )


@program("python -m utils.image_codes", "Rerun the same command to resume.")
def main(argv: Sequence[str] | None = None) -> int:
    """Encode or decode; a user's mistake is one sentence on stderr and exit status 2."""
    flags = parse_args(sys.argv[1:] if argv is None else argv)
    _check(flags)
    written = encode(flags) if flags.command == "encode" else decode(flags)
    print(f"written: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
