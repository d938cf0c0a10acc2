"""The standard COCO caption scores: pycocoevalcap, and Java for its tokenizer, METEOR and SPICE."""

import logging
import subprocess
import threading
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice import spice
from pycocoevalcap.tokenizer import ptbtokenizer

from utils.errors import UserError

Captions = dict[str, list[str]]  # image id -> captions

logger = logging.getLogger("metrics.coco_caption")


def tokenize(captions: Captions) -> Captions:
    """Penn Treebank words of each caption, lowercased, without punctuation.

    Calls the tokenizer of pycocoevalcap, but through a pipe: its own wrapper writes into site-packages.
    """
    lines = [caption for group in captions.values() for caption in group]
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, encoding="utf-8")
    tokenized = done.stdout.split("\n")[:-1]
    if done.returncode or len(tokenized) != len(lines):
        reason = done.stderr.strip().split("\n")[0]
        raise UserError(f"Java failed to tokenize the captions ({reason}); check that `java -version` works.")
    rest = iter(tokenized)
    return {image: [_without_punctuation(next(rest)) for _ in group] for image, group in captions.items()}


def _without_punctuation(tokens: str) -> str:
    return " ".join(token for token in tokens.split() if token not in ptbtokenizer.PUNCTUATIONS)


def scores(hypotheses: Captions, references: Captions) -> dict[str, float]:
    """The scores of tokenized captions, in the order of the COCO server."""
    bleu = Bleu(4).compute_score(references, hypotheses, verbose=0)[0]
    found = {f"Bleu_{order}": value for order, value in enumerate(bleu, start=1)}
    meteor = Meteor()
    try:
        found["METEOR"] = meteor.compute_score(references, hypotheses)[0]
    except (OSError, ValueError) as error:  # its Java process ended early
        raise UserError(f"METEOR's Java process failed ({error}); give it 2 GB of free memory.") from error
    finally:
        meteor.lock = threading.Lock()  # which its finalizer waits for, also where it is interrupted holding it
    found["ROUGE_L"] = Rouge().compute_score(references, hypotheses)[0]
    found["CIDEr"] = Cider().compute_score(references, hypotheses)[0]
    if not _spice_is_installed():  # asking its class would download 400 MB
        logger.warning("SPICE is skipped: `python -m pycocoevalcap.spice.get_stanford_models` installs it.")
    else:
        try:
            found["SPICE"] = spice.Spice().compute_score(references, hypotheses)[0]
        except (OSError, subprocess.CalledProcessError) as error:
            logger.warning("SPICE is skipped, its Java process failed (%s); it was made for Java 8.", error)
    return {name: float(value) for name, value in found.items()}


def _spice_is_installed() -> bool:
    folder = Path(spice.__file__).with_name("lib")
    return all((folder / f"stanford-corenlp-3.6.0{part}.jar").exists() for part in ("", "-models"))
