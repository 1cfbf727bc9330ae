"""The speed benchmark: what is measured is what is reported."""

import csv
import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("botorch")
pytest.importorskip("joblib")

from gp_deq.benchmarks import speed
from gp_deq.benchmarks.runs import RunFile
from gp_deq.benchmarks.speed_kernels import MATERN, KernelSpec

CONFIG = dataclasses.replace(speed.SpeedConfig.quick(), memory=False)


@pytest.fixture(scope="module")
def records() -> list[speed.Record]:
    rows: list[str] = []
    found = speed.EXPERIMENT.collect(CONFIG, on_row=rows.append)
    assert len(rows) == len(found) == len(CONFIG.keys)
    assert [record.key for record in found] == CONFIG.keys
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
            if (r.section, r.n, r.kernel) == (record.section, record.n, MATERN.label)
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
    RunFile(speed.Record, path).write(records)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["kernel"] for row in rows] == [record.kernel for record in records]
    assert [float(row["value"]) for row in rows] == [record.value for record in records]
    assert RunFile(speed.Record, path).read() == records
    assert RunFile(speed.Record, tmp_path / "absent.csv").read() == []
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a file of this benchmark"):
        speed.EXPERIMENT.collect(CONFIG, path)


def test_finished_sections_are_not_repeated(
    records: list[speed.Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "speed.csv"
    RunFile(speed.Record, path).write(records)

    def on_step(what: str) -> None:
        raise AssertionError(what)

    assert speed.EXPERIMENT.collect(CONFIG, path, on_step=on_step) == records

    # stopped within a section: all of it is measured again, for ratios are of one run
    sections: list[str] = []
    measure = speed._measure

    def watching(section: str, *arguments: object) -> object:
        sections.append(section)
        return measure(section, *arguments)

    monkeypatch.setattr(speed, "_measure", watching)
    kept = [r for r in records if r.section != "batch" or r.kernel != "RBF"]
    RunFile(speed.Record, path).write(kept)
    again = speed.EXPERIMENT.collect(CONFIG, path)
    assert sections == ["batch"] and [r.key for r in again] == CONFIG.keys
    assert [r for r in again if r.section != "batch"] == [
        r for r in records if r.section != "batch"
    ]
    monkeypatch.setattr(speed, "_measure", lambda section, *_: sections.append(section) or [])
    assert speed.EXPERIMENT.collect(CONFIG, path, resume=False) == []
    assert sections[1:] == list(CONFIG.sections)


def test_memory_of_the_kernels() -> None:
    """At n = 1000 a float64 matrix is 7.6 MiB; a step of RBF holds several of them."""
    matrix = 1000**2 * 8 / 2**20
    matern = speed.peak_memory(MATERN, 1000, 8)
    deq = speed.peak_memory(KernelSpec("DEQ-NNGP", "relu"), 1000, 8)
    assert 10 * matrix < matern < 40 * matrix
    assert 3 * matrix < deq < 0.75 * matern


def test_failure_in_the_memory_process_is_told() -> None:
    with pytest.raises(RuntimeError, match="unknown family"):
        speed.peak_memory(KernelSpec("nonsense"), 10, 2)


def test_draw(records: list[speed.Record], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from gp_deq.plotting import save_figure

    figure = speed.draw(records, speed.check_targets(records, CONFIG.n), "where")
    bars, by_n, by_depth = figure.axes
    assert len(bars.patches) == len(CONFIG.main_kernels)
    assert len(by_n.lines) == len(CONFIG.size_kernels)
    assert len(by_depth.lines) == 5  # Matérn, two equilibria, two finite families
    save_figure(figure, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 20_000
