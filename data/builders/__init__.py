"""Programs that make data files from others: image codes, and the four files of pretraining from public annotations."""
