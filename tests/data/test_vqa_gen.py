"""Visual question answering: what the encoder reads of a row."""

import pytest

from data.vqa_gen import VqaGenData, source_text


@pytest.mark.parametrize(
    ("objects", "names"),
    [
        ("cat&&big tree", "cat big tree"),
        (" cat&&big tree\u3000 ", "cat big tree"),
        ("\xa0cat &&  tree\r", "cat    tree"),  # only the column is stripped, not each name
        ("  ", ""),
        ("cat&&tree&&car&&bus ", "cat tree car"),
    ],
)
def test_the_object_column_is_stripped(objects: str, names: str) -> None:
    config = VqaGenData(max_object_length=3)
    assert source_text("what is it", objects, config, "gpt2") == f" what is it? object: {names}"
