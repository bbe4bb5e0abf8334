"""Read event files back, and ask a real TensorBoard server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

START_SECONDS = 60


def read_events(folder: Path | str) -> EventAccumulator:
    """Everything in the event files of one run."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0}).Reload()


@contextmanager
def serve(folder: Path) -> Iterator[Callable[[str], Any]]:
    """Start TensorBoard on a free loopback port and give a function from a path to the parsed answer."""
    arguments = ["--logdir", str(folder), "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *arguments], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            url = _url(log, server)

            def get(path: str) -> Any:
                with urllib.request.urlopen(f"{url}/{path.lstrip('/')}", timeout=30) as answer:
                    return json.load(answer)

            _wait_for(lambda: bool(get("data/runs")))
            yield get
        finally:
            server.terminate()
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(timeout=10)


def _url(log: Path, server: subprocess.Popen) -> str:
    found: list[str] = []

    def look() -> bool:
        assert server.poll() is None, log.read_text()
        found.extend(word for word in log.read_text().split() if word.startswith("http://127.0.0.1:"))
        return bool(found)

    _wait_for(look)
    return found[0].rstrip("/")


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "TensorBoard did not answer in time"
        time.sleep(0.2)
