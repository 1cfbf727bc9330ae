"""Instruments: times of functions that take turns, peak memory, fresh processes."""

import ctypes
import gc
import json
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import gpytorch
import torch

__all__ = ["FREED_BLOCKS_GO_BACK", "conditions", "in_process", "interleaved_times"]
__all__ += ["max_resident", "peak_above_start"]

_MIB = 2.0**20
#: For the environment of a process whose peak memory is measured: glibc takes every block of 64 KiB
#: or more from the system and gives it back when freed, so that freed memory is not counted.
FREED_BLOCKS_GO_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}


def _give_back_memory() -> None:
    """Return the free memory of the C library's heap to the system, with glibc."""
    if platform.system() == "Linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def interleaved_times(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda name: None,
    fresh_pages: bool = True,
) -> dict[str, list[float]]:
    """Time several functions in turns.

    Args:
        steps: The functions by name.
        rounds: How often each is timed.
        warmup: Rounds run before, untimed.
        seed: Seed of the order within each round.
        on_step: Called with the name after every call.
        fresh_pages: Whether to give free memory back to the operating system before every call.

    Returns:
        For each name its wall times in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    shuffle = random.Random(seed).shuffle
    gc.collect()
    gc.freeze()  # what is there already need not be looked at again
    try:
        for i in range(warmup + rounds):
            shuffle(order)
            for name in order:
                gc.collect()
                if fresh_pages:
                    _give_back_memory()
                start = time.perf_counter()
                steps[name]()
                elapsed = time.perf_counter() - start
                if i >= warmup:
                    times[name].append(elapsed)
                on_step(name)
    finally:
        gc.unfreeze()
    return times


def _status(key: str) -> float:
    """A field of this process's status file in MiB (Linux)."""
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"no {key} in /proc/self/status")
    return int(match.group(1)) / 1024


def max_resident() -> float:
    """Largest memory in MiB that the process has held."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MIB if platform.system() == "Darwin" else 1024)


def peak_above_start(function: Callable[[], object]) -> float:
    """Peak resident memory in MiB while a function runs, above what was resident before.

    Linux can reset its high-water mark of resident memory; elsewhere the growth of the largest
    memory that the process has ever held stands in for it.

    Args:
        function: The function.
    """
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        function()
        return _status("VmHWM") - before
    except OSError:
        before = max_resident()
        function()
        return max_resident() - before


def in_process(
    module: str, function: str, arguments: object, environment: Mapping[str, str]
) -> object:
    """Call a function in a fresh process.

    Args:
        module: Name of the module that has the function.
        function: Its name.
        arguments: Its only argument, anything that JSON can carry.
        environment: Variables for the process, the C library's settings among them.

    Returns:
        The result of the function, through JSON.

    Raises:
        RuntimeError: The process failed; the message has its last words.
    """
    code = (
        "import importlib, json, sys; module = importlib.import_module(sys.argv[1]);"
        "print(json.dumps(getattr(module, sys.argv[2])(json.loads(sys.argv[3]))))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    result = subprocess.run(
        [sys.executable, "-c", code, module, function, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    if result.returncode != 0:
        raise RuntimeError(f"{function}({arguments}) failed in its process:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def conditions() -> str:
    """The machine and the versions, for the record.

    Returns:
        One line.
    """
    from importlib.metadata import version

    return (
        f"torch {torch.__version__}, gpytorch {gpytorch.__version__}, "
        f"botorch {version('botorch')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"{torch.get_num_threads()} threads, float64"
    )
