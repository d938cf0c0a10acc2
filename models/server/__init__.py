"""The predictor for other programs, as JSON over HTTP: `serve.py`."""
