"""Leaderboards that score predictions."""

from typing import NamedTuple


class Server(NamedTuple):
    """A leaderboard that needs integer ids.

    Attributes:
        name: for messages. takes_texts: whether a file is let pass with a warning where its ids are texts, as the
            original wrote those of captions.
    """

    name: str
    takes_texts: bool = False


VQA_SERVER = Server("the VQA server (EvalAI)")
COCO_SERVER = Server("the COCO caption server", takes_texts=True)
