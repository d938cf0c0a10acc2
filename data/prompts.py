"""Every prompt, by its name and kind of byte pair encoding: those of the tasks and those of pretraining."""

from collections.abc import Mapping

from data.tasks import TASKS

# A prompt is named by its task and, of a task with several, by its kind: "vqa_gen", "vqa_gen objects".
PROMPTS: dict[str, Mapping[str, str]] = {
    **{f"{task} {kind}".rstrip(): text for task, row in TASKS.items() for kind, text in row.prompts.items()},
    # Two blanks in front, and location tokens behind, as released.
    "pretrain region": {"gpt2": "  what does the region describe? region:"},
    "pretrain match caption": {"gpt2": ' does the image describe " {caption} "?'},
    "pretrain match answer": {"gpt2": ' what is the answer to question " {question} ". is " {answer} "?'},
    "pretrain text": {"gpt2": ' what is the complete text of " "?'},  # the text comes before the last two tokens
    "pretrain image": {"gpt2": " what is the image in the middle part?"},
    "pretrain detection": {"gpt2": " what are the objects in the image?"},
}


def prompt(name: str, bpe: str | None) -> str:
    """Prompt template of a task; for the encoding "bert" the Chinese one where there is one."""
    templates = PROMPTS[name]
    return templates.get("bert" if bpe == "bert" else "gpt2", templates["gpt2"])
