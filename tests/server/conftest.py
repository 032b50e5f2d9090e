import pytest

from rebus.server.engine import Engine
from rebus.server.load import load


@pytest.fixture(scope="session")
def engine(tiny_checkpoint) -> Engine:
    return load(tiny_checkpoint)
