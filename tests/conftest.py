"""Settings of all tests.

Small tensors gain nothing from a second thread and lose tenfold by it where another process keeps the core busy.
Hypothesis's deadlines are times of single examples, which say nothing where workers share the cores.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from _once import Once
from _said import listen
from hypothesis import settings

settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# Tests that need processes fork them from one server, which imports once what takes each of them seconds.
multiprocessing.set_forkserver_preload(["lightning.pytorch", "lightning_cx"])

COLLECTED = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note every test there is, before `-m` and `-k` leave some out; a test of the pages compares."""
    config.stash[COLLECTED] = [item.nodeid for item in items]


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Spare the garbage collector what is there for good, a million objects of torch and of the tests."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def collected(request: pytest.FixtureRequest) -> list[str]:
    return request.config.stash[COLLECTED]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    folder = tmp_path_factory.getbasetemp()
    root = (folder if worker_id == "master" else folder.parent) / "once"
    root.mkdir(exist_ok=True)
    return Once(root)


@pytest.fixture(autouse=True)
def _warned() -> Iterator[None]:
    handler = listen()
    yield
    logging.getLogger("lightning_cx").removeHandler(handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start each test from the same generators, whichever tests its worker has run before."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
