"""Every prompt, by task and kind of byte pair encoding: one table."""

# A leading space is part of the prompt: GPT-2's encoding distinguishes " what" from "what".
PROMPTS: dict[str, dict[str, str]] = {
    "caption": {"gpt2": " what does the image describe?", "bert": "图片描述了什么内容?"},
}


def prompt(task: str, bpe: str | None) -> str:
    """Prompt template of a task; every encoding but "bert" reads the GPT-2 column."""
    return PROMPTS[task]["bert" if bpe == "bert" else "gpt2"]
