"""The training engine: fairseq's flags, schedules and registry over PyTorch's own parts.

`trainer.py` makes an update, `loop.py` a run of them, `files.py` writes and restores checkpoints, `log.py` says how it
goes, `optimizers.py` holds Adam and the moving average, `flags.py` which of fairseq's flags are followed.
"""
