"""Every prompt, by task and kind of byte pair encoding: one table."""

# A leading space is part of the prompt: GPT-2's encoding distinguishes " what" from "what".
PROMPTS: dict[str, dict[str, str]] = {
    "caption": {"gpt2": " what does the image describe?", "bert": "图片描述了什么内容?"},
    "vqa_gen": {"gpt2": " {question}"},
    "vqa_gen objects": {"gpt2": " {question} object: {objects}"},
    "refcoco": {
        "gpt2": ' which region does the text " {text} " describe?',
        "bert": '这段文字" {text} "描述的是哪个区域？',
    },
    "snli_ve": {"gpt2": ' does the image describe " {hypothesis} "?'},
    "snli_ve caption": {"gpt2": ' can image and text1 " {caption} " imply text2 " {hypothesis} "?'},
    "image_classify": {"gpt2": " what does the image describe?"},
    "image_gen": {"gpt2": " what is the complete image? caption: {caption}"},
    "gigaword": {
        "gpt2": ' what is the summary of article " {source} "?',
        "bert": "{source} 请用一个句子简单总结上文：",
    },
    "cola": {"gpt2": ' is the text " {sentence} " grammatically correct?'},
    "mnli": {"gpt2": ' can text1 " {first} " imply text2 " {second} "?'},
    "mrpc": {"gpt2": ' does text1 " {first} " and text2 " {second} " have the same semantics?'},
    "qnli": {"gpt2": ' does " {sentence} " contain the answer to question " {question} "?'},
    "qqp": {"gpt2": ' is question " {first} " and question " {second} " equivalent?'},
    "rte": {"gpt2": ' can text1 " {first} " imply text2 " {second} "?'},
    "sst2": {"gpt2": ' is the sentiment of text " {sentence} " positive or negative?'},
    # Two blanks in front, and location tokens behind, as released.
    "pretrain region": {"gpt2": "  what does the region describe? region:"},
    "pretrain match caption": {"gpt2": ' does the image describe " {caption} "?'},
    "pretrain match answer": {"gpt2": ' what is the answer to question " {question} ". is " {answer} "?'},
    "pretrain text": {"gpt2": ' what is the complete text of " "?'},  # the text comes before the last two tokens
    "pretrain image": {"gpt2": " what is the image in the middle part?"},
    "pretrain detection": {"gpt2": " what are the objects in the image?"},
}


def prompt(task: str, bpe: str | None) -> str:
    """Prompt template of a task; for the encoding "bert" the Chinese one where there is one."""
    templates = PROMPTS[task]
    return templates.get("bert" if bpe == "bert" else "gpt2", templates["gpt2"])
