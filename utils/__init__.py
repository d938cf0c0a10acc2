"""Lowest floor: errors, files, checkpoint files, predictions; imports nothing of the floors above."""

import ofa_names  # noqa: F401  (a user's package of the same name is a sentence)
