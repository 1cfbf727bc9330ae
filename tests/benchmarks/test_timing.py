"""Instruments: kernels take turns, and a peak counts what is alive at once."""

import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("botorch")

from gp_deq.benchmarks.timing import (
    FREED_BLOCKS_GO_BACK,
    conditions,
    in_process,
    interleaved_times,
)


def test_interleaved_times_discards_the_warmup_and_takes_turns() -> None:
    calls: list[str] = []

    def step(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    times = interleaved_times(
        {"slow": lambda: step("slow", 0.02), "fast": lambda: step("fast", 0.0)},
        rounds=4,
        warmup=2,
    )
    assert len(calls) == 12
    rounds = [calls[i : i + 2] for i in range(0, 12, 2)]
    assert all(sorted(names) == ["fast", "slow"] for names in rounds)
    assert [len(values) for values in times.values()] == [4, 4]
    assert min(times["slow"]) >= 0.02 > min(times["fast"])


PEAK_OF_TWO_ALIVE = """
import torch
from gp_deq.benchmarks.timing import peak_above_start

def function():
    first = torch.ones(2**22, dtype=torch.float64)  # 32 MiB
    second = first + 1
    del first
    second += torch.ones(2**22, dtype=torch.float64)  # two alive, three allocated

print(peak_above_start(function))
"""


def test_peak_counts_what_is_alive_at_once() -> None:
    # in a process of its own: the heap of this one may hold whatever the tests before it left
    result = subprocess.run(
        [sys.executable, "-c", PEAK_OF_TWO_ALIVE],
        env={**os.environ, **FREED_BLOCKS_GO_BACK},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 60 < float(result.stdout) < 80


def test_process_returns_what_the_function_does_or_says_why_not() -> None:
    assert in_process("math", "sqrt", 4.0, {}) == 2.0
    assert in_process("os", "getenv", "GP_DEQ_TEST", {"GP_DEQ_TEST": "there"}) == "there"
    with pytest.raises(RuntimeError, match=r"math domain error|expected a nonnegative input"):
        in_process("math", "sqrt", -1.0, {})


def test_conditions_name_machine_and_versions() -> None:
    assert conditions().startswith("torch ") and conditions().endswith("threads, float64")
