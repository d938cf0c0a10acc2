"""What holds for the demo data of every task: splits, texts, vocabulary, chance."""

from collections import Counter

import pytest

from data.prompts import PROMPTS
from data.text import Vocabulary
from digits.handwriting import SPLITS
from digits.rows import DemoTask, Row
from digits.scene import Scene
from digits.tasks import TASKS, chance
from digits.vocabulary import BPE_DIR, DICTIONARY_LINES, demo_texts

TEXT_TASKS = ("gigaword", "cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")
# column of what is to be said, and its values: all equally frequent
BALANCED = {
    "snli_ve": (5, ("neutral", "entailment", "contradiction")),
    "image_classify": (1, tuple(str(label) for label in range(1, 11))),
    "cola": (2, ("0", "1")),
    "mnli": (2, ("0", "1", "2")),
    "mrpc": (2, ("0", "1")),
    "qnli": (3, ("not_entailment", "entailment")),
    "qqp": (5, ("0", "1")),
    "rte": (3, ("not_entailment", "entailment")),
    "sst2": (1, ("0", "1")),
}


def rows_of(task: DemoTask, count: int, file: int = 0, seed: int = 1) -> list[Row]:
    return [task.row(file, number, seed, 48) for number in range(count)]


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.load(BPE_DIR)


def test_the_vocabulary_is_small_and_has_every_byte(vocab: Vocabulary) -> None:
    assert vocab.code_start == DICTIONARY_LINES + 5 == 2000
    assert {vocab.index(str(byte)) for byte in range(256)}.isdisjoint({vocab.unk})
    for text in demo_texts():
        for spaced in (text.lstrip(), " " + text.lstrip()):
            ids = vocab.encode(spaced)
            assert vocab.unk not in ids and vocab.decode(ids) == spaced


@pytest.mark.parametrize("name", TASKS)
def test_every_word_of_other_rows_is_in_the_vocabulary(name: str, vocab: Vocabulary) -> None:
    task = TASKS[name]
    rows = [row for file in range(len(task.files)) for row in rows_of(task, 400, file, seed=9)]
    for text in {text for row in rows for text in task.row_texts(row)}:
        assert vocab.unk not in vocab.encode(text) + vocab.encode(" " + text), text
    for word in task.words:
        assert vocab.unk not in vocab.encode(" " + word)


@pytest.mark.parametrize("name", ["cola", "mnli", "sst2"])
def test_label_words_are_single_tokens(name: str, vocab: Vocabulary) -> None:
    assert [len(vocab.encode(" " + word)) for word in TASKS[name].words] == [1] * len(TASKS[name].words)


def test_every_prompt_is_encodable(vocab: Vocabulary) -> None:
    for template in PROMPTS.values():
        text = template["gpt2"].replace("{}", "{0}")
        fields = {field: "a red seven" for field in "question answer objects text hypothesis caption source".split()}
        fields |= {field: "a red seven" for field in "sentence first second".split()}
        assert vocab.unk not in vocab.encode(text.format("a red seven", **fields))


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_held_out_texts_never_occur_in_training(name: str) -> None:
    task = TASKS[name]
    texts = [{tuple(task.row_texts(row)) for row in rows_of(task, 300, file)} for file in range(len(task.files))]
    assert sum(map(len, texts)) == len(set.union(*texts))
    assert min(map(len, texts)) > 200  # and most of them are different from one another


@pytest.mark.parametrize("name", BALANCED)
def test_labels_balance_and_chance_is_a_class(name: str) -> None:
    column, values = BALANCED[name]
    for file in range(len(TASKS[name].files)):
        counts = Counter(row[column] for row in rows_of(TASKS[name], 60, file))
        assert counts == dict.fromkeys(values, 60 // len(values))
    assert chance(name) == pytest.approx(1 / len(values))


@pytest.mark.parametrize("name", TASKS)
def test_columns_are_texts_without_tabs_and_one_image(name: str) -> None:
    task = TASKS[name]
    for file, (split, _) in enumerate(task.files):
        assert split in SPLITS
        for row in rows_of(task, 5, file):
            assert sum(isinstance(column, Scene) for column in row) == (name not in TEXT_TASKS)
            texts = [column for column in row if isinstance(column, str)]
            assert all(text == " ".join(text.split()) and (text or name == "pretrain") for text in texts)


def test_tasks_do_not_share_scenes() -> None:
    firsts = [column for task in TASKS.values() for column in task.row(0, 0, 1, 48) if isinstance(column, Scene)]
    assert len({scene.texture_seed for scene in firsts}) == len(firsts) == 8


def test_unknown_task_has_no_chance() -> None:
    with pytest.raises(KeyError):
        chance("chess")
