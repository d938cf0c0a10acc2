"""A checkpoint as programs that run without this repository: `python -m models.export CHECKPOINT FOLDER`."""
