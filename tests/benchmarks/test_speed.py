"""The speed benchmark: what is measured is what is reported."""

import csv
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("botorch")

from gp_deq.benchmarks import speed

CONFIG = dataclasses.replace(speed.SpeedConfig.quick(), memory=False)


@pytest.fixture(scope="module")
def records() -> list[speed.Record]:
    steps: list[str] = []
    found = [record for section in speed.run_speed(CONFIG, steps.append) for record in section]
    assert len(steps) == CONFIG.num_steps
    return found


def test_every_kernel_is_measured_in_every_section(records: list[speed.Record]) -> None:
    sections = {
        section: {r.kernel for r in records if r.section == section}
        for section in ("main", "kept-pages", "batch", "time-n", "time-depth")
    }
    assert sections["main"] == {spec.label for spec in CONFIG.main_kernels}
    assert sections["kept-pages"] == {spec.label for spec in CONFIG.main_kernels}
    assert sections["batch"] == {spec.label for spec in CONFIG.batch_kernels}
    assert sections["time-n"] == {spec.label for spec in CONFIG.size_kernels}
    assert sections["time-depth"] == {spec.label for spec in CONFIG.depth_kernels}
    assert {r.n for r in records if r.section == "time-n"} == set(CONFIG.sizes)
    assert all(r.low <= r.value <= r.high and r.value > 0 for r in records)


def test_ratios_are_to_matern_in_the_same_section(records: list[speed.Record]) -> None:
    for record in records:
        (reference,) = [
            r
            for r in records
            if (r.section, r.n, r.kernel) == (record.section, record.n, speed.MATERN.label)
        ]
        assert record.ratio == pytest.approx(record.value / reference.value)


def test_targets(records: list[speed.Record]) -> None:
    targets = {t.what: t for t in speed.check_targets(records, CONFIG.n)}
    for section, pages in (("main", "fresh"), ("kept-pages", "kept")):
        relu = targets[f"DEQ-NNGP relu: time / Matérn-5/2, {pages} pages"]
        (measured,) = [r for r in records if (r.section, r.kernel) == (section, "DEQ-NNGP relu")]
        assert (relu.bound, relu.measured) == (1.0, measured.ratio)
        assert relu.met == (measured.ratio <= 1.0)
    assert targets["DEQ-NNGP relu w=1.98: time / Matérn-5/2, kept pages"].bound == 1.1
    assert targets["DEQ-NTK relu: time / Matérn-5/2, fresh pages"].bound == 2.0
    assert targets["DEQ-NNGP erf: t-batch time / Matérn-5/2"].bound == 3.0
    assert not any("memory" in what for what in targets)  # none was measured


def test_csv_round_trip(records: list[speed.Record], tmp_path: Path) -> None:
    path = tmp_path / "speed.csv"
    speed.write_csv(records, path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["kernel"] for row in rows] == [record.kernel for record in records]
    assert [float(row["value"]) for row in rows] == [record.value for record in records]
    assert speed.read_csv(path) == records
    assert speed.read_csv(tmp_path / "absent.csv") == []
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a file of this benchmark"):
        speed.read_csv(path)


def test_finished_sections_are_not_repeated(records: list[speed.Record]) -> None:
    def on_step(what: str) -> None:
        raise AssertionError(what)

    again = [record for section in speed.run_speed(CONFIG, on_step, records) for record in section]
    assert again == records


def test_interleaved_times_discards_the_warmup_and_takes_turns() -> None:
    calls: list[str] = []

    def step(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    times = speed.interleaved_times(
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
from gp_deq.benchmarks import speed

def function():
    first = torch.ones(2**22, dtype=torch.float64)  # 32 MiB
    second = first + 1
    del first
    second += torch.ones(2**22, dtype=torch.float64)  # two alive, three allocated

print(speed._peak_above_start(function))
"""


def test_peak_counts_what_is_alive_at_once() -> None:
    # in a process of its own: the heap of this one may hold whatever the tests before it left
    result = subprocess.run(
        [sys.executable, "-c", PEAK_OF_TWO_ALIVE],
        env={**os.environ, **speed.FREED_BLOCKS_GO_BACK},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 60 < float(result.stdout) < 80


def test_memory_of_the_kernels() -> None:
    """At n = 1000 a float64 matrix is 7.6 MiB; a step of RBF holds several of them."""
    matrix = 1000**2 * 8 / 2**20
    matern = speed.peak_memory(speed.MATERN, 1000, 8)
    deq = speed.peak_memory(speed.KernelSpec("DEQ-NNGP", "relu"), 1000, 8)
    assert 10 * matrix < matern < 40 * matrix
    assert 3 * matrix < deq < 0.75 * matern


def test_failure_in_the_memory_process_is_told() -> None:
    with pytest.raises(RuntimeError, match="unknown family"):
        speed.peak_memory(speed.KernelSpec("nonsense"), 10, 2)


def test_labels_and_kernels() -> None:
    spec = speed.KernelSpec("DEQ-NNGP", "relu", weight_variance=1.98)
    assert spec.label == "DEQ-NNGP relu w=1.98"
    kernel = spec.build(3)
    assert kernel.base_kernel.weight_variance.item() == pytest.approx(1.98)
    assert all(p.dtype == torch.float64 and p.requires_grad for p in kernel.parameters())
    assert kernel.base_kernel.lengthscale.shape == (1, 3)
    with pytest.raises(ValueError, match="unknown family"):
        speed.KernelSpec("nonsense").build(3)


def test_draw(records: list[speed.Record], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from gp_deq.plotting import save_figure

    figure = speed.draw(records, speed.check_targets(records, CONFIG.n))
    bars, by_n, by_depth = figure.axes
    assert len(bars.patches) == len(CONFIG.main_kernels)
    assert len(by_n.lines) == len(CONFIG.size_kernels)
    assert len(by_depth.lines) == 5  # Matérn, two equilibria, two finite families
    save_figure(figure, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 20_000
