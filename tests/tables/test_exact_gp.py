"""The exact GP at the initial values that all kernels share."""

import pytest
import torch

pytest.importorskip("botorch")
pytest.importorskip("pandas")

from gp_deq.kernels import DEQNNGPKernel
from gp_deq.tables import make_model, scalar_hyperparameters


def test_initial_values() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(20, 2, dtype=torch.float64, generator=generator)
    mll = make_model(DEQNNGPKernel(ard_num_dims=2), x, x.sum(-1))
    assert mll.model.covar_module(x, diag=True).mean().item() == pytest.approx(1.0)
    values = scalar_hyperparameters(mll.model)
    assert values["noise"] == pytest.approx(0.1)
    # the two lengthscales are not a scalar; the mean of the prior has no constraint
    assert values.keys() == {"noise", "outputscale", "weight_variance", "bias_variance"}
    assert all(parameter.dtype == torch.float64 for parameter in mll.parameters())
