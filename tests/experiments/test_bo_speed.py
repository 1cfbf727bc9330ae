"""Seconds of a fit and of a step of Bayesian optimisation."""

import pytest

pytest.importorskip("botorch")
pytest.importorskip("joblib")

from bo_speed import DEFAULT, EXPERIMENT, Sizes, _tables


def test_times_are_relative_to_botorchs_default() -> None:
    config = Sizes(("linear", DEFAULT), rounds=1, fit_size=6, step_size=6)
    times = EXPERIMENT.collect(config)
    assert [time.key for time in times] == config.keys
    for linear, default in (times[:2], times[2:]):
        assert default.ratio == 1 and linear.ratio == linear.seconds / default.seconds > 0
    conditions, fit, step = _tables(config, times)
    assert "threads" in conditions
    assert (fit.title, step.title) == ("fit, n = 6, d = 20", "step, n = 6, d = 10")


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="not a surrogate that is fitted"):
        Sizes(("random", DEFAULT))
    with pytest.raises(ValueError, match="has to be among"):
        Sizes(("linear",))
