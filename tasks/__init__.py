"""The registered tasks, one file each over `tasks/base.py`."""
