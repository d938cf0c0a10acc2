"""The model (`models.ofa`), its decoding (`models.generation`) and the fairseq door (`models.fairseq_ofa`)."""

import ofa_names  # noqa: F401  (a user's package of the same name is a sentence)
