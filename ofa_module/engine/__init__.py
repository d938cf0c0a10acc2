"""The training engine: fairseq's flags, schedules and registry over PyTorch's own parts.

`trainer.py` makes an update (`precision.py`, `optimizers.py` and `schedule.py` are its parts), `loop.py` a run of them,
`state.py` says what a checkpoint holds, `files.py` which files there are, `log.py` how it goes, and `flags.py` which of
fairseq's flags are followed.
"""
