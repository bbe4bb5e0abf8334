"""Processes that wait for work: started once for a file of tests, since each takes seconds to import everything."""

from __future__ import annotations

import atexit
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

TIME_LIMIT = 200  # seconds for one piece of work; a deadlock would last for ever
MARK = "RESULT "
TESTS = Path(__file__).parent.parent
PATHS = os.pathsep.join(map(str, (TESTS.parent, TESTS)))


class Workers:
    """Runs one script in several processes that form a group, as torchrun would start them.

    Args:
        script: Calls `serve(work)`.
        count: Number of processes.
    """

    def __init__(self, script: Path, count: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        group |= {"TORCHELASTIC_RUN_ID": "tests", "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0"}
        self._answers: list[queue.Queue[str]] = []
        self._noise: list[str] = []
        self._processes = []
        for rank in range(count):
            own = group | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = subprocess.Popen(
                [sys.executable, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS, **own},
            )
            self._processes.append(process)
            self._answers.append(queue.Queue())
            threading.Thread(target=self._listen, args=(process, self._answers[-1]), daemon=True).start()
        atexit.register(self.stop)

    def _listen(self, process: subprocess.Popen, answers: queue.Queue[str]) -> None:
        for line in process.stdout or ():
            if line.startswith(MARK):
                answers.put(line.removeprefix(MARK))
            else:
                self._noise = [*self._noise[-60:], line]

    def __call__(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """What each process answers."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(options) + "\n")
            process.stdin.flush()
        end = monotonic() + TIME_LIMIT
        return [json.loads(self._answer(number, end)) for number in range(len(self._processes))]

    def _answer(self, number: int, end: float) -> str:
        """Of one process; all are stopped where one has ended or does not answer."""
        while all(process.poll() is None for process in self._processes) and monotonic() < end:
            with suppress(queue.Empty):
                return self._answers[number].get(timeout=1)
        self.stop()
        raise AssertionError(f"a process ended, or did not answer within {TIME_LIMIT} s:\n{''.join(self._noise)}")

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def serve(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Do what comes in, one line each, until there is no more."""
    for line in sys.stdin:
        answer = work(json.loads(line))
        print("\n" + MARK + json.dumps(answer), flush=True)
