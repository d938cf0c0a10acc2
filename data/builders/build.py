"""Data files of a task from the files that its dataset is published as.

    python -m data.build caption --images coco --annotations dataset_coco.json --output mydata
    python -m data.build vqa_gen --images train2014 val2014 --output mydata \\
        --train v2_OpenEnded_mscoco_train2014_questions.json v2_mscoco_train2014_annotations.json \\
        --val v2_OpenEnded_mscoco_val2014_questions.json v2_mscoco_val2014_annotations.json
    python -m data.build pretrain ...          as python -m data.build_pretrain

The output folder is what the run scripts call DATA_DIR. Its files are JSON lines that point at the image files or, with
--tsv, the released ones with the images in them. Started again after being stopped, the program resumes.
"""

import argparse
import hashlib
import pickle
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.builders import image_codes, pretrain
from data.builders.coco_annotations import BadEntries
from data.builders.manifests import DataFile, Entry, check_new, write
from data.builders.originals import Originals, Split, classes, coco_references, given
from data.builders.text_originals import glue, parallel
from data.caption import split_captions
from data.glue import GLUE
from data.tasks import TASKS, RowKind
from data.tsv import TsvFile
from metrics.cider import count_documents, reward_text
from metrics.document_frequencies import write_table
from utils.constants import SEPARATOR
from utils.errors import UserError
from utils.files import atomic_write, check_folder
from utils.options import path_of, positive, program_name
from utils.program import program

ROOT = Path(__file__).resolve().parents[2]
SUBSET = 5000  # images of ImageNet's file for validation in training, spread over all classes
RELEASED_ANSWERS = 3129
WORDS = "cider_cached_tokens/coco-{}-words.p"


class Layout(NamedTuple):
    """Where a task's files are below DATA_DIR, without ending, by split; and the script that trains with them."""

    folder: str
    files: Mapping[str, str]
    script: str


def _files(template: str, train: str = "train", val: str = "val", test: str = "test") -> dict[str, str]:
    return {split: template.format(name) for split, name in (("train", train), ("val", val), ("test", test))}


LAYOUTS = {
    "caption": Layout(
        "caption_data", _files("caption_{}", train="stage1_train"), "caption/train_caption_stage1.sh"
    ),
    "vqa_gen": Layout("vqa_data", _files("vqa_{}"), "vqa/train_vqa_distributed.sh"),
    "snli_ve": Layout("snli_ve_data", _files("snli_ve_{}", val="dev"), "snli_ve/train_snli_ve.sh"),
    "image_classify": Layout(
        "imagenet_1k_data", {"train": "imagenet_1k_train", "val": "imagenet_1k_val_subset", "all": "imagenet_1k_val"},
        "image_classify/train_imagenet_distributed.sh",
    ),
    "image_gen": Layout(
        "coco_image_gen_data", _files("coco_vqgan_{}", val="dev", test="full_test"),
        "image_gen/train_image_gen_stage1_distributed.sh",
    ),
    "gigaword": Layout("gigaword_data", _files("gigaword_{}", val="dev"), "gigaword/train_gigaword.sh"),
    **{
        name: Layout("glue_data", _files(f"{name}_{{}}", val="dev"), f"glue/train_{name}.sh") for name in GLUE
    },
    **{
        name: Layout(
            f"{name}_data",
            {split: f"{name}_{split}" for split in ("train", "val", "testA", "testB", "test")},
            f"refcoco/train_{name}.sh",
        )
        for name in ("refcoco", "refcocoplus", "refcocog")
    },
}  # fmt: skip


class Builder:
    """Writes the files of one task.

    Attributes:
        folder: where to. extras: files beside the data files -> what writes them to a path.
    """

    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags = flags
        self.layout = LAYOUTS[flags.name if flags.task == "refcoco" else flags.task]
        self.folder = flags.output / self.layout.folder
        self.bad = BadEntries(flags.skip_bad_entries, "--skip-bad-entries")
        self.extras: dict[str, Callable[[Path], None]] = {}

    def target(self, name: str) -> Path:
        """The path of a data file."""
        return self.folder / f"{name}.{'tsv' if self.flags.tsv else 'jsonl'}"

    def run(self) -> dict[Path, int]:
        """Writes all files; the rows of each.

        Raises:
            UserError: a file or entry that cannot be used, or an output that exists.
        """
        files = self._files()
        extras = {self.folder / name: make for name, make in self.extras.items()}
        for path in extras:
            check_new(path, files[0].target)
        rows = write(files, self.bad, self.flags.workers, extras)
        shutil.rmtree(self._work, ignore_errors=True)
        return rows

    def command(self, rows: Mapping[Path, int]) -> str:
        """The command that trains with the files; '' without a file to train or to validate with."""
        paths = [self.target(self.layout.files[split]).absolute() for split in ("train", "val")]
        if not {path.absolute() for path in rows}.issuperset(paths):
            return ""
        data = [] if self.flags.tsv else [f"DATA_FILES={','.join(map(str, paths))}"]
        words = [f"DATA_DIR={self.flags.output.absolute()}", *data, "bash", f"{ROOT}/run_scripts/{self.layout.script}"]
        return " ".join(map(shlex.quote, words))

    def _files(self) -> list[DataFile]:
        task, flags = self.flags.task, self.flags
        if task == "image_classify":
            splits, answers = classes(flags)
            splits = self._imagenet(splits)
            self.extras["class2label_new.pkl"] = _pickle(answers)
        elif task == "gigaword":
            splits = parallel(flags, self.bad)
        elif task in GLUE:
            splits = glue(task, flags, self.bad)
        else:
            originals = Originals(flags, self.bad, self.layout.files)
            if task == "image_gen":
                return self._image_gen(originals.captions(()))
            if task == "vqa_gen":
                splits, answers = originals.questions()
                if answers:
                    self.extras["trainval_ans2label.pkl"] = _pickle(answers)
            elif task == "refcoco":
                splits = originals.regions()
            elif task == "snli_ve":
                splits = originals.entailment()
            else:
                splits = originals.captions()
                self._caption_extras(splits)
        files = self._named(splits)
        if task == "caption" and "train" in splits:
            files.append(self._file("caption_stage2_train", _joined(splits["train"])))
        return files

    def _file(self, name: str, entries: Sequence[Entry]) -> DataFile:
        check_new(self.target(name), self.target(name))
        return DataFile(self.target(name), entries, TASKS[self.flags.task])

    def _named(self, splits: Split) -> list[DataFile]:
        """The files of the splits; those that flags name have rows, or writing says so."""
        if not any(splits.values()):
            raise UserError(f"There are no rows for {self.folder}: check the files and the folder of the images.")
        splits = {**{split: [] for split in given(self.flags) if split}, **splits}
        return [self._file(name, splits[split]) for split, name in self.layout.files.items() if split in splits]

    def _caption_extras(self, splits: Split) -> None:
        if "train" in splits:
            self.extras[WORDS.format("train")] = _document_frequencies(_joined(splits["train"]), reward=True)
        if "val" in splits:
            self.extras[WORDS.format("valid")] = _document_frequencies(splits["val"], reward=False)
        if any("caption" in entry.values for entry in splits.get("test", ())):
            self.extras["test_caption_coco_format.json"] = _bytes(coco_references(splits["test"]))

    def _imagenet(self, splits: Split) -> Split:
        """The validation split as both files of it."""
        if "test" in splits:
            raise UserError("image_classify has no test files: name the folder with --val.")
        if "val" in splits:
            splits["all"] = splits["val"]
            splits["val"] = splits["val"][:: -(-len(splits["val"]) // SUBSET) or 1]
        return splits

    @property
    def _work(self) -> Path:
        return self.folder / ".image_codes"

    def _image_gen(self, splits: Split) -> list[DataFile]:
        """Encodes each image once; a row for each caption of training, and for the first of each other image."""
        for split in splits.keys() - {"train"}:
            splits[split] = list({entry.image: entry for entry in reversed(splits[split])}.values())[::-1]
        files = self._named(splits)
        images = {entry.image: entry for entries in splits.values() for entry in entries if entry.image is not None}
        codes = self._encode([Entry(entry.where, {"id": str(path)}, path) for path, entry in images.items()])
        rows = TsvFile(codes, "0,1")
        numbers = {rows[number][0]: number for number in range(len(rows))}

        def codes_of(entry: Entry) -> dict[str, str]:
            return {"codes": rows[numbers[str(entry.image)]][1]}

        return [
            file._replace(
                entries=[
                    entry._replace(values={"id": entry.values["id"], "text": entry.values["caption"]})
                    for entry in file.entries
                    if str(entry.image) in numbers
                ],
                extra=codes_of,
            )
            for file in files
        ]

    def _encode(self, images: Sequence[Entry]) -> Path:
        """The file of the ids and codes of images; what an earlier call has done of it is not done again."""
        flags = self.flags
        words = ["encode", f"--code-image-size={flags.code_image_size}", "--rank=0", "--world-size=1"]
        words += [f"--vqgan-model-path={flags.vqgan_model_path}", f"--vqgan-config-path={flags.vqgan_config_path}"]
        stamp = flags.vqgan_model_path.stat().st_mtime_ns
        digest = hashlib.sha256(repr((words, stamp, self.bad.skip, images)).encode("utf-8", "surrogatepass"))
        manifest, codes = (self._work / f"{digest.hexdigest()[:8]}_{name}" for name in ("images.jsonl", "codes.tsv"))
        skipped = self.bad.count
        if not manifest.exists():
            write([DataFile(manifest, images, RowKind({"id": 0, "image": 1}, ""))], self.bad, flags.workers)
        if not codes.exists():
            words += [f"--file={manifest}", f"--outputs={codes}", f"--workers={flags.workers}"]
            words += ["--skip-bad-rows"] if self.bad.skip else []
            image_codes.encode(image_codes.parse_args(words))
        self.bad.count = skipped + len(images) - len(TsvFile(codes, "0,1"))
        return codes


def _joined(entries: Iterable[Entry]) -> list[Entry]:
    """One entry for each image, with all its captions."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.image_id, []).append(entry)
    return [
        same[0]._replace(values={"id": name, "caption": SEPARATOR.join(entry.values["caption"] for entry in same)})
        for name, same in found.items()
    ]


def _document_frequencies(entries: Sequence[Entry], reward: bool) -> Callable[[Path], None]:
    """Writes the document frequencies of captions, prepared as validation or the reward of training compares them."""
    captions = (entry.values["caption"] for entry in entries)
    images = (
        [reward_text(one) for one in text.split(SEPARATOR)] if reward else split_captions(text) for text in captions
    )
    return lambda path: write_table(*count_documents(images), path)


def _pickle(answers: Sequence[str]) -> Callable[[Path], None]:
    """Writes answers in the form of the released candidates."""
    return _bytes(pickle.dumps({answer: label for label, answer in enumerate(answers)}))


def _bytes(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with atomic_write(path) as file:
            file.write(data)

    return make


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags of the program."""
    parser = argparse.ArgumentParser(
        program_name("python -m data.build"),
        description="Build the data files of a task from the files that its dataset is published as.",
        epilog="`pretrain` builds the files of pretraining. `TASK --help` lists the flags of a task.",
    )
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    for task, kind in TASKS.items():
        own = tasks.add_parser(task, help=HELP.get(task, "GLUE: the official tables"))
        own.add_argument("--output", type=path_of, required=True, help="folder to write to, DATA_DIR of the scripts")
        for split in ("train", "val", "test"):
            own.add_argument(f"--{split}", type=path_of, nargs="+", metavar="FILE", help="files of this split")
        own.add_argument("--tsv", action="store_true", help="write the released TSV files, with the images in them")
        own.add_argument("--skip-bad-entries", action="store_true", help="skip and count unusable entries")
        threads = "processes that encode" if task == "image_gen" else "threads that read images"
        own.add_argument("--workers", type=positive, default=1 if task == "image_gen" else 4, help=threads)
        if task in ("caption", "image_gen", "refcoco"):
            own.add_argument(
                "--annotations", type=path_of, nargs="+", metavar="FILE", help="files that name the split of each entry"
            )
        if "image" in kind.names and task != "image_classify" or task == "image_gen":
            own.add_argument("--images", type=path_of, nargs="+", required=True, metavar="FOLDER", help="of the images")
        if task == "image_classify":
            own.add_argument(
                "--class-names",
                type=path_of,
                help="names of the classes: lines of folder and name, or JSON (default: the folders' names)",
            )
        elif task == "vqa_gen":
            own.add_argument(
                "--answers", type=positive, default=RELEASED_ANSWERS,
                help="number of answers to choose among, the most frequent of training (default %(default)s)",
            )  # fmt: skip
        elif task == "refcoco":
            names = [name for name in LAYOUTS if name.startswith("refcoco")]
            own.add_argument("--name", choices=names, default=names[0], help="name of the files (default %(default)s)")
        elif task == "image_gen":
            own.add_argument("--vqgan-model-path", type=path_of, required=True, help="the VQGAN's last.ckpt")
            own.add_argument("--vqgan-config-path", type=path_of, required=True, help="the VQGAN's model.yaml")
            own.add_argument(
                "--code-image-size", type=positive, default=256, help="side of images (default %(default)s)"
            )
    return parser.parse_args(argv)


HELP = {
    "caption": "COCO's captions, or Karpathy's split file",
    "vqa_gen": "VQA's questions and annotations",
    "refcoco": "refs (pickle or JSON) and COCO's instances, or phrases with boxes",
    "snli_ve": "SNLI-VE's JSON lines",
    "image_classify": "folders with a folder for each class, as ImageNet",
    "image_gen": "captions as of `caption`, and the images' codes",
    "gigaword": "parallel text files: articles, summaries",
}


@program("python -m data.build", "Rerun the same command to resume.")
def main(argv: Sequence[str] | None = None) -> int:
    """Builds, says what was written, and how to train with it; 2 on a user's mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Flags alone are the command line that `ofa build` had when it built the files of pretraining only.
    if words[:1] == ["pretrain"] or (words and words[0].startswith("-") and words[0] not in ("-h", "--help")):
        return pretrain.main(words[words[0] == "pretrain" :])
    flags = parse_args(words)
    for path in filter(None, (getattr(flags, f"vqgan_{kind}_path", None) for kind in ("model", "config"))):
        if not path.is_file():
            raise UserError(f"There is no {path}; check the path.")
    check_folder(flags.output, "--output")
    builder = Builder(flags)
    rows = builder.run()
    for path, count in rows.items():
        print(f"{count} rows -> {path}")
    for name in builder.extras:
        print(f"-> {builder.folder / name}")
    if builder.bad.count:
        print(f"{builder.bad.count} entries were skipped.")
    if command := builder.command(rows):
        print(f"Train with (SIZE=tiny, medium, base, large or huge):\n  {command}")
    return 0
