"""Kernels by name."""

import pytest
import torch

pytest.importorskip("botorch")

from gp_deq.benchmarks.speed_kernels import KernelSpec


def test_labels_and_kernels() -> None:
    spec = KernelSpec("DEQ-NNGP", "relu", weight_variance=1.98)
    assert spec.label == "DEQ-NNGP relu w=1.98"
    kernel = spec.build(3)
    assert kernel.base_kernel.weight_variance.item() == pytest.approx(1.98)
    assert all(p.dtype == torch.float64 and p.requires_grad for p in kernel.parameters())
    assert kernel.base_kernel.lengthscale.shape == (1, 3)
    with pytest.raises(ValueError, match="unknown family"):
        KernelSpec("nonsense").build(3)
