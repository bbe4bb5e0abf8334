"""Time in interleaved rounds, peak memory in a fresh process, error against the loop in double precision."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from _peers import PLAIN, Contender, Step, Task, by_loop
from _workloads import WORKLOADS, Workload
from torch import Tensor

MEBIBYTE = 2**20
MEMORY_SHARE = 0.9  # of what is free: a way that wants more fails with a message before the machine swaps or kills
MESSAGE_LENGTH = 200
SLOWEST_CHILD_S = 1800


@dataclass
class Outcome:
    """One way on one workload; what could not be had is None, and then `failure` says why."""

    ratio: float | None = None
    rounds: int = 0
    error: float | None = None
    memory: float | None = None
    failure: str | None = None


def measure_times(
    workload: Workload, contenders: Sequence[Contender], rounds: int, device: torch.device, patience: float
) -> tuple[float, dict[str, Outcome]]:
    """Seconds of the plain step, and for each contender the median over rounds of its time by the plain step's.

    A contender whose single step takes longer than `patience` seconds is timed once.
    """
    exact, plain = reference(workload, device), PLAIN.prepare(Task.of(workload, device))
    for _ in range(2):
        plain()
    runs = {contender.name: Run(contender, workload, device) for contender in contenders}
    for run in runs.values():
        run.warm_up(exact)
        run.time(time_of(plain, device))
    patient = [run for run in runs.values() if run.seconds <= patience]
    for run in patient:
        run.ratios.clear()
    plains = []
    for i in range(rounds):
        plains.append(time_of(plain, device))
        first = i % max(len(patient), 1)  # every way comes first at some time
        for run in patient[first:] + patient[:first]:
            run.time(plains[-1])
    return median(plains), {name: run.outcome() for name, run in runs.items()}


class Run:
    """One contender at work; after a failure it does nothing more."""

    def __init__(self, contender: Contender, workload: Workload, device: torch.device) -> None:
        self.contender, self.workload, self.device = contender, workload, device
        self.step: Step | None = None
        self.ratios: list[float] = []
        self.seconds = 0.0
        self.error: float | None = None
        self.failure: str | None = None

    def warm_up(self, exact: Tensor | None) -> None:
        try:
            self.step = self.contender.prepare(Task.of(self.workload, self.device))
            self.error = error_of(self.step(), exact)
        except Exception as error:  # a way that fails is a row of the table
            self.give_up(error)

    def time(self, plain_seconds: float) -> None:
        if self.step is None:
            return
        try:
            self.seconds = time_of(self.step, self.device)
            self.ratios.append(self.seconds / plain_seconds)
        except Exception as error:
            self.give_up(error)

    def give_up(self, error: Exception) -> None:
        self.failure, self.step = shortened(error), None

    def outcome(self) -> Outcome:
        if self.failure is not None:
            return Outcome(failure=self.failure)
        return Outcome(median(self.ratios), len(self.ratios), self.error)


def time_of(step: Step, device: torch.device) -> float:
    """Seconds of one call, on the device's own clock where it has one."""
    gc.collect()
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        step()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3
    begin = perf_counter()
    step()
    return perf_counter() - begin


def reference(workload: Workload, device: torch.device) -> Tensor | None:
    """The Gram matrix by the naive loop in float64, or None where its N x P rows do not fit into memory."""
    task = Task.of(workload, device)
    x = task.x.double() if task.x.is_floating_point() else task.x
    y = task.y.double() if task.y.is_floating_point() else task.y
    try:
        return by_loop(Task(task.network.double(), x, y, task.losses))()
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return None


def error_of(found: Tensor | None, exact: Tensor | None) -> float | None:
    """Relative error in the Frobenius norm; a vector is compared with the diagonal."""
    if found is None:
        raise ValueError("returned nothing")
    if exact is None:
        return None
    exact = exact if found.dim() == 2 else exact.diagonal()
    return ((found.double() - exact).norm() / exact.norm()).item()


def shortened(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    return text if len(text) <= MESSAGE_LENGTH else f"{text[:MESSAGE_LENGTH]}..."


# Peak memory: the parent asks, the child measures itself.


def measure_memory(workload: Workload, contender: Contender, device: torch.device) -> Outcome:
    """Peak of the contender's step above that of the plain step, in MiB, from a fresh process."""
    script = Path(__file__).with_name("tap.py")
    command = [sys.executable, str(script), "--peak", workload.name, contender.name, "--device", device.type]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=SLOWEST_CHILD_S)
    except subprocess.TimeoutExpired:
        return Outcome(failure=f"took more than {SLOWEST_CHILD_S} s")
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        return Outcome(failure=f"its process ended with code {child.returncode}: {last[:MESSAGE_LENGTH]}")
    return Outcome(**json.loads(child.stdout.strip().splitlines()[-1]))


def report_peak(workload: Workload, contender: Contender, device: torch.device) -> str:
    """The child's side: what `measure_memory` reads."""
    with suppress(Exception):  # what is imported and set up on first use is no part of the step
        contender.prepare(Task.of(WORKLOADS["tiny-mlp-6"], device))()
    bound_memory(device)
    task = Task.of(workload, device)
    plain = PLAIN.prepare(task)
    for _ in range(3):
        plain()
    before = peak_bytes(device)  # the plain step's, and every later one at least this
    try:
        step = contender.prepare(task)
        for _ in range(2):
            step()
    except Exception as error:
        return json.dumps({"failure": shortened(error)})
    return json.dumps({"memory": (peak_bytes(device) - before) / MEBIBYTE})


def peak_bytes(device: torch.device) -> int:
    """Most that was ever resident (on a GPU: allocated) in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child begins at what its parent had when it was started
        return 1024 * read_kilobytes(status, "VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def bound_memory(device: torch.device) -> None:
    """Turn what would bring the machine down into an error of the way that asked for it."""
    free = Path("/proc/meminfo")
    if device.type != "cpu" or not free.exists():  # CUDA reserves addresses by the terabyte
        return
    now = read_kilobytes(Path("/proc/self/status"), "VmSize")
    limit = 1024 * (now + int(MEMORY_SHARE * read_kilobytes(free, "MemAvailable")))
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def read_kilobytes(path: Path, key: str) -> int:
    """One line of a file in /proc."""
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    raise KeyError(f"{path} has no {key}.")
