"""The surrogates start alike."""

import pytest
import torch

pytest.importorskip("botorch")

from gp_deq.benchmarks.surrogates import SURROGATES


@pytest.mark.parametrize("name", [name for name in SURROGATES if name != "random"])
def test_surrogates_start_with_a_variance_near_one(name: str) -> None:
    """All but the published I-BNN, whose point is that it does not."""
    make = SURROGATES[name]
    assert make is not None
    generator = torch.Generator().manual_seed(0)
    for num_dims in (2, 40):
        x = torch.rand(6, num_dims, dtype=torch.float64, generator=generator)
        model = make(x, x.sum(-1, keepdim=True))
        model.eval()
        with torch.no_grad():
            variance = model.covar_module(model.transform_inputs(x), diag=True).mean().item()
        if name == "I-BNN fixed":
            assert variance > 100
        else:
            assert 0.5 < variance < 2
        learned = {key for key, value in model.named_parameters() if value.requires_grad}
        weights = [key for key in learned if key.endswith("raw_weight_var")]
        assert bool(weights) == (name == "I-BNN fitted")
        assert any("noise" in key for key in learned)
