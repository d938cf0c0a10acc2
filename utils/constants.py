"""What vocabulary, files and models of every release agree on."""

# Ids of the special tokens, the first ones of every vocabulary.
BOS, PAD, EOS, UNK = 0, 1, 2, 3
NUM_SPECIAL = 4
# Between the items of one column: captions, answers, objects.
SEPARATOR = "&&"
