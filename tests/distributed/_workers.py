"""Processes that wait for work, forked from one that has imported torch and Lightning, which takes seconds."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import sys
import tempfile
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from _processes import free_port

TIME_LIMIT = 200  # seconds for one piece of work; a deadlock would last for ever
FORKING = get_context("forkserver")  # conftest.py says what it has imported


class Workers:
    """Runs `work(options)` of one module in several processes that form a group, as torchrun would start them.

    Args:
        module: By its name; what it is given and answers is JSON.
        count: Number of processes.
    """

    def __init__(self, module: str, count: int) -> None:
        self.module, self.count = module, count
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        atexit.register(self.stop)

    def start(self) -> None:
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(self.count)}
        group |= {"TORCHELASTIC_RUN_ID": "tests", "LOCAL_WORLD_SIZE": str(self.count), "GROUP_RANK": "0"}
        group |= {"OMP_NUM_THREADS": "1"}
        self._noise = tempfile.NamedTemporaryFile("r", suffix=".txt")  # noqa: SIM115 - as long as the processes
        for rank in range(self.count):
            ours, theirs = FORKING.Pipe()
            own = group | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = FORKING.Process(target=_serve, args=(self.module, own, self._noise.name, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def __call__(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """What each process answers; they are started where they are not there, or not any more."""
        if not self._processes:
            self.start()
        for pipe in self._pipes:
            pipe.send(json.dumps(options))
        end = monotonic() + TIME_LIMIT
        return [json.loads(self._answer(pipe, end)) for pipe in self._pipes]

    def _answer(self, pipe: Connection, end: float) -> str:
        """Of one process; all are stopped where one has ended or does not answer."""
        with suppress(EOFError, ConnectionError):
            while all(process.is_alive() for process in self._processes) and monotonic() < end:
                if pipe.poll(1):
                    return pipe.recv()
        noise = self._noise.read()[-5000:]
        self.stop()
        raise AssertionError(f"a process ended, or did not answer within {TIME_LIMIT} s:\n{noise}")

    def stop(self) -> None:
        if not self._processes:
            return
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()
        self._processes, self._pipes = [], []
        self._noise.close()


def _serve(module: str, variables: dict[str, str], noise: str, pipe: Connection) -> None:
    """Do what comes in, one after the other, until there is no more."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    with Path(noise).open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    work = importlib.import_module(module).work
    with suppress(EOFError):
        while True:
            pipe.send(json.dumps(work(json.loads(pipe.recv()))))
