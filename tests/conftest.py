"""What all tests share."""

import os
from pathlib import Path

import pytest
from server import ADDSUB, Server, identities


def pytest_collection_modifyitems(items):
    """A server that hangs must not hang the suite."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(120))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The real models and ONNX Runtime."""
    folder = os.environ.get("QUADRANT_TEST_ASSETS")
    if not folder:
        pytest.fail("QUADRANT_TEST_ASSETS is not set; run the tests with `cargo xtask test`")
    return Path(folder)


@pytest.fixture(scope="module")
def echo():
    """A server with an emulated model for each data type, and `addsub` with two inputs."""
    with Server({**identities(), "addsub.emulated.toml": ADDSUB}) as server:
        yield server
