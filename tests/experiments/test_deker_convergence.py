"""Convergence to the DEKer kernel: the alignment, what is drawn, and that a run can go on."""

import csv
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("joblib")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

import deker_convergence
from deker_convergence import (
    EXPERIMENT,
    ConvergenceConfig,
    centered_kernel_alignment,
    run_convergence,
    summarize,
)
from typer.testing import CliRunner, Result

from gp_deq.benchmarks.command import command

HEADER = ",".join(f.name for f in dataclasses.fields(deker_convergence.Draw)) + "\n"
TINY = ConvergenceConfig(widths=(6, 30), seeds=2, num_steps=5, step_sizes=(1.0, 0.5))


def inline_limit(x: Tensor, step_size: float = 1.0) -> Tensor:
    """ReLU link, linear features, lambda = 6, by iterating the correlations."""
    b = x @ x.mT / x.shape[-1]
    effective = 36 * (2 - step_size) / step_size
    root = b.diagonal().sqrt()
    cosine = (b / torch.outer(root, root)).clamp(-1, 1)
    r = cosine / 2
    for _ in range(200):
        theta = r.clamp(-1, 1).acos()
        bend = theta.sin() + (math.pi - theta) * r
        slope = cosine * (2 * effective - 1) * (math.pi - theta)
        r = (slope + bend) / (2 * effective * math.pi)
    return torch.outer(root, root) * r.fill_diagonal_(1.0) / (2 * effective - 1)


def random_gram(seed: int, rank: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(7, rank, generator=generator, dtype=torch.float64)
    return factor @ factor.mT


def test_alignment_against_the_definition() -> None:
    first, second = random_gram(0), random_gram(1)
    center = torch.eye(7, dtype=torch.float64) - 1 / 7
    a, b = center @ first @ center, center @ second @ center
    expected = torch.trace(a @ b) / (torch.trace(a @ a) * torch.trace(b @ b)).sqrt()
    found = centered_kernel_alignment(first, second)
    assert found == pytest.approx(expected.item(), rel=1e-12)
    assert 0 < found < 1
    assert centered_kernel_alignment(second, first) == pytest.approx(found, rel=1e-14)
    assert centered_kernel_alignment(first, first) == pytest.approx(1.0, rel=1e-14)
    assert centered_kernel_alignment(3 * first, 0.1 * second + 5) == pytest.approx(found, rel=1e-12)


def test_alignment_is_undefined_for_zero_and_refuses_shapes() -> None:
    assert math.isnan(centered_kernel_alignment(random_gram(0), torch.zeros(7, 7)))
    with pytest.raises(ValueError, match=r"\(7, 7\) and \(6, 6\)"):
        centered_kernel_alignment(random_gram(0), random_gram(0)[:6, :6])
    with pytest.raises(ValueError, match="square"):
        centered_kernel_alignment(torch.ones(3), torch.ones(3))


@pytest.mark.parametrize("step_size", [1.0, 0.1])
def test_limit_is_the_equilibrium(step_size: float) -> None:
    """Also for the collinear inputs of the grid, whose correlation is below 1."""
    x = deker_convergence.grid()
    found = deker_convergence.limiting_gram(x, step_size)
    torch.testing.assert_close(found, inline_limit(x, step_size), rtol=1e-9, atol=1e-12)


def test_alignment_grows_with_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deker_convergence, "limiting_gram", inline_limit)
    config = ConvergenceConfig(widths=(20, 2000), seeds=3, num_steps=30, step_sizes=(1.0,))
    narrow, wide = summarize(run_convergence(config))
    assert (narrow.width, wide.width) == (20, 2000)
    assert narrow.alignment.mean < 0.95 < 0.99 < wide.alignment.low
    assert wide.relative_error.mean < 0.12 < 0.3 < narrow.relative_error.mean
    levels = deker_convergence.references()
    assert wide.control.mean == pytest.approx(levels.control, abs=0.02)
    assert levels.control < 0.6
    # the draws beat the linear kernel, which is a good match already
    assert 0.95 < levels.linear < wide.alignment.low
    assert wide.relative_error.high < levels.linear_error


def test_dead_features_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """At width 1 a negative response ends an input at once."""
    monkeypatch.setattr(deker_convergence, "limiting_gram", inline_limit)
    config = ConvergenceConfig(widths=(1,), seeds=3, num_steps=60, step_sizes=(1.0, 0.1))
    dead, alive = summarize(run_convergence(config))
    assert dead.num_zero == 3 and math.isnan(dead.alignment.mean)
    assert alive.num_zero == 0 and not math.isnan(alive.alignment.mean)


def test_interval_is_students() -> None:
    draws = [
        deker_convergence.Draw(1.0, 5, 6, seed, 14, value, value, value)
        for seed, value in enumerate((0.5, 0.7, 0.9))
    ]
    (summary,) = summarize(draws)
    half = 4.302652729911275 * 0.2 / math.sqrt(3)  # t quantile, two degrees of freedom
    assert summary.alignment == pytest.approx((0.7, 0.7 - half, 0.7 + half), rel=1e-9)
    (single,) = summarize(draws[:1])
    assert single.control == (0.5, 0.5, 0.5)


def test_a_run_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deker_convergence, "limiting_gram", inline_limit)
    path = tmp_path / "draws.csv"
    whole = run_convergence(TINY, path)
    assert [draw.key for draw in whole] == TINY.keys
    assert whole == run_convergence(TINY)  # the file changes nothing

    # stopped in the middle of the last row
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 9
    path.write_text("".join(lines[:6]) + lines[6][:7], encoding="utf-8")
    drawn = []
    original = deker_convergence.FeatureSGD.draw_gram

    def counting(self: object, x: Tensor, width: int, **options: object) -> Tensor:
        drawn.append(width)
        return original(self, x, width, **options)

    monkeypatch.setattr(deker_convergence.FeatureSGD, "draw_gram", counting)
    steps: list[str] = []
    assert run_convergence(TINY, path, on_row=steps.append) == whole
    assert len(drawn) == 3 and len(steps) == 8
    assert path.read_text(encoding="utf-8").splitlines(keepends=True) == lines

    # other settings share the file
    run_convergence(dataclasses.replace(TINY, num_steps=2, widths=(6,)), path)
    assert len(drawn) == 7
    assert run_convergence(TINY, path) == whole and len(drawn) == 7
    with open(path, newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 12


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "torn", HEADER + "1.0,5\n"])
def test_foreign_file_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"other\.csv .* this benchmark"):
        run_convergence(TINY, path)
    assert path.read_text(encoding="utf-8") == text


def test_full_protocol_and_bad_settings() -> None:
    assert ConvergenceConfig.full().widths == tuple(range(5, 501, 5))
    for options in ({"widths": ()}, {"widths": (0,)}, {"seeds": 0}, {"step_sizes": (2.0,)}):
        with pytest.raises(ValueError, match="must be"):
            ConvergenceConfig(**options)


def _invoke(folder: Path, *arguments: str) -> Result:
    files = ("--output", str(folder / "plot.png"), "--csv", str(folder / "draws.csv"))
    return CliRunner().invoke(
        command(EXPERIMENT, deker_convergence.__doc__),
        ["--jobs", "1", *files, *arguments],
        env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"},
    )


def test_command(tmp_path: Path) -> None:
    arguments = ("--seeds", "2", "--steps", "60", "--width", "30", "--width", "2")
    result = _invoke(tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    assert "mean ± 95 % interval over 2 draws" in result.output
    assert "The DEKer kernel with RBF: alignment 0.47" in result.output
    assert "linear kernel: alignment 0.9773, relative error" in result.output
    assert "d = 2: the features of all inputs are zero in 2 of 2 draws" in result.output
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    rows = (tmp_path / "draws.csv").read_text(encoding="utf-8")
    assert len(rows.splitlines()) == 9
    again = _invoke(tmp_path, *arguments)
    assert again.output == result.output
    assert (tmp_path / "draws.csv").read_text(encoding="utf-8") == rows


def test_command_refuses_bad_settings(tmp_path: Path) -> None:
    result = _invoke(tmp_path, "--width", "0")
    assert result.exit_code == 2 and "width must be at least 1" in result.output
    result = _invoke(tmp_path, "--step-size", "2")
    assert result.exit_code == 2 and "between 0 and 2" in result.output
    (tmp_path / "draws.csv").write_text("a,b\n", encoding="utf-8")
    result = _invoke(tmp_path)
    assert result.exit_code == 2 and "not a file of this benchmark" in result.output


def test_figure() -> None:
    def summary(step: float, width: int, *means: float) -> deker_convergence.Summary:
        intervals = [deker_convergence.Interval(m, 0.9 * m, 1.1 * m) for m in means]
        return deker_convergence.Summary(step, width, 30, 3, 0, *intervals)

    summaries = [
        summary(1.0, 5, math.nan, math.nan, 1.0),  # undefined: no feature is left
        summary(1.0, 10, 0.8, 0.3, 0.5),
        summary(1.0, 100, 0.9, 0.4, 0.1),
    ]
    levels = deker_convergence.References(0.45, 0.95, 0.3)
    figure = deker_convergence.draw(summaries, levels)
    assert "interval of 3 draws" in figure.get_suptitle()
    left, right = figure.axes
    assert list(left.lines[0].get_xdata()) == [10, 100]
    assert list(left.lines[0].get_ydata()) == [0.8, 0.9]
    assert list(left.lines[1].get_ydata()) == [0.3, 0.4]
    assert list(right.lines[0].get_ydata()) == [1.0, 0.5, 0.1]
    assert len(left.collections) == 2 and len(right.collections) == 1
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    note = "step size h = 1"
    limits = ["limit with the linear kernel", "limit with RBF"]
    assert labels == [f"with the DEKer kernel, {note}", f"with RBF (control), {note}", *limits]
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == [note, "best multiple of the linear kernel", "slope −1/2"]
    assert (left.get_xscale(), right.get_yscale()) == ("log", "log")
    assert left.get_ylabel() == "centred kernel alignment"
    deker_convergence.draw(summaries[:1], levels)  # undefined at every width
