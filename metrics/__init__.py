"""One metric per name: sums that add up over batches and processes (`sums`), and the field's scorers."""

import ofa_names  # noqa: F401  (a user's package of the same name is a sentence)
