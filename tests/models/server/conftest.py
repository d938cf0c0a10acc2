"""The demo model behind servers."""

import pytest

import demo
from models.predictor import OFAPredictor
from tests.models.server.servers import MOST, Running
from utils.options import find_vqgan


@pytest.fixture(scope="module")
def predictor():
    vqgan = find_vqgan(demo.CHECKPOINT, None)
    return OFAPredictor.load(demo.CHECKPOINT, "cpu", vqgan=vqgan, max_image_pixels=10**6)


@pytest.fixture(scope="module")
def server(predictor):
    running = Running(predictor, queue=40, max_bytes=MOST)
    yield running
    running.close()


@pytest.fixture
def start(predictor):
    """Starts servers with limits of their own."""
    started = []

    def begin(**limits):
        started.append(Running(predictor, **limits))
        return started[-1]

    yield begin
    for running in started:
        running.close()
