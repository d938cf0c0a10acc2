"""Programs that make data files from others: each task's from its published files, image codes, and pretraining."""
