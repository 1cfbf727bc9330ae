"""The kernels in Ax: what its parser makes of a data set, and a run of a client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from botorch.models import MultiTaskGP, SingleTaskGP
from botorch.test_functions import Branin
from botorch.utils.datasets import SupervisedDataset
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.priors import GammaPrior
from torch import Tensor

from gp_deq import DEKerKernel, DEQNNGPKernel, DEQNTKKernel
from gp_deq.bayesopt import get_covar_module

pytest.importorskip("ax", reason='Ax is not installed: pip install "gp_deq[ax]"')

from ax.adapter.registry import Generators
from ax.api.client import Client
from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig
from ax.core.search_space import SearchSpaceDigest
from ax.exceptions.core import UserInputError
from ax.generation_strategy.generation_node import GenerationNode
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.generation_strategy.generator_spec import GeneratorSpec
from ax.generation_strategy.transition_criterion import MinTrials
from ax.generators.torch.botorch_modular.input_constructors.covar_modules import (
    covar_module_argparse,
)
from ax.generators.torch.botorch_modular.surrogate import ModelConfig, Surrogate, SurrogateSpec

from gp_deq.bayesopt.ax import ScaleDEQKernel

BASES = {"affine": DEQNNGPKernel, "rbf": RBFKernel, "matern": MaternKernel}
NAMES = {"deq-nngp": DEQNNGPKernel, "deq-ntk": DEQNTKKernel, "deker": DEKerKernel}
every_class = pytest.mark.parametrize("cls", [*NAMES.values(), ScaleDEQKernel])
every_name = pytest.mark.parametrize("name", NAMES)


def dataset(num_dims: int = 3, num_outputs: int = 1) -> SupervisedDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, num_dims, generator=generator, dtype=torch.float64)
    y = torch.stack([((k + 1) * x).sin().sum(-1) for k in range(num_outputs)], -1)
    return SupervisedDataset(
        x,
        (y - y.mean(0)) / y.std(0),
        feature_names=[f"x{j}" for j in range(num_dims)],
        outcome_names=[f"y{k}" for k in range(num_outputs)],
    )


def parse(cls: type[Kernel], data: SupervisedDataset | None = None, **options: Any) -> Any:
    """The kernel that Ax makes."""
    options.setdefault("botorch_model_class", SingleTaskGP)
    arguments = covar_module_argparse(cls, dataset=data or dataset(), **options)
    return cls(**arguments)


def base(kernel: Kernel) -> Any:
    """The kernel that has the lengthscales."""
    while not kernel.has_lengthscale:
        kernel = kernel.base_kernel
    return kernel


def assert_same(kernel: Kernel, expected: Kernel) -> None:
    ours, theirs = kernel.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert [n for n, *_ in kernel.named_priors()] == [n for n, *_ in expected.named_priors()]


@every_name
@pytest.mark.parametrize("num_outputs", [1, 2])
@pytest.mark.parametrize("below", [None, "matern", "rbf", "affine"])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_kernel_is_that_of_get_covar_module(
    name: str, num_outputs: int, below: str | None, activation: str
) -> None:
    if name == "deker" and (below in ("matern", "rbf") or activation == "erf"):
        pytest.skip("DEKer has no base kernel, and no link of that name")
    data, batch_shape = dataset(3, num_outputs), torch.Size([2] if num_outputs == 2 else [])
    options = {} if below is None else {"base": below}
    expected = get_covar_module(name, 3, batch_shape, activation=activation, base=below)
    scaled = parse(ScaleDEQKernel, data, kernel=name, activation=activation, **options)
    assert_same(scaled, expected)
    options["link" if name == "deker" else "activation"] = activation
    assert_same(parse(NAMES[name], data, **options), expected.base_kernel)


def test_options_of_the_affine_form_call_for_it() -> None:
    prior = GammaPrior(2.0, 1.0)
    for options in ({"center": 0.25}, {"lengthscale_prior": prior}):
        kernel = parse(DEQNNGPKernel, **options)
        assert kernel.base_kernel is None and kernel.lengthscale.shape == (1, 3)
    with pytest.raises(ValueError, match="center has no meaning"):
        parse(DEQNNGPKernel, base="matern", center=0.5)


def test_base_kernel_of_ones_own() -> None:
    own = RBFKernel(ard_num_dims=3)
    kernel = parse(DEQNTKKernel, base_kernel=own)
    assert kernel.base_kernel is own and not kernel.has_lengthscale
    with pytest.raises(UserInputError, match="Only one of `base` and `base_kernel`"):
        parse(DEQNTKKernel, base_kernel=own, base="rbf")


@every_class
def test_shapes_are_those_of_the_data_set_and_the_options(cls: type[Kernel]) -> None:
    kernel = parse(cls, dataset(4, 2))
    assert base(kernel).lengthscale.shape == (2, 1, 4)
    assert kernel.batch_shape == (2,)
    assert base(parse(cls, ard_num_dims=None)).lengthscale.shape == (1, 1)
    assert parse(cls, batch_shape=torch.Size([5])).batch_shape == (5,)
    for options in ({"active_dims": [0, -1]}, {"inactive_features": ["x1"]}):
        part = parse(cls, **options).double()
        assert part.active_dims.tolist() == [0, 2]
        x = dataset().X
        moved = x + torch.tensor([0.0, 0.3, 0.0])
        assert torch.equal(part(x).to_dense(), part(moved).to_dense())


@every_class
def test_multi_task_model(cls: type[Kernel]) -> None:
    data = dataset(3)
    x = data.X.clone()
    x[:, -1] = x[:, -1].round()
    kernel = parse(cls, data, botorch_model_class=MultiTaskGP)
    model = MultiTaskGP(x, data.Y, task_feature=-1, covar_module=kernel)
    assert base(kernel).lengthscale.shape == (1, 2)
    assert model.posterior(x[:, :-1]).mean.shape == (8, 2)


def test_options_replace_the_defaults() -> None:
    prior = GammaPrior(2.0, 1.0)
    kernel = parse(DEQNNGPKernel, activation="relu", center=0.0, weight_variance_prior=prior)
    assert float(kernel.center) == 0
    assert kernel.weight_variance_prior is prior
    assert float(kernel.weight_variance.detach()) < kernel.activation.critical_weight_variance == 2
    assert isinstance(
        kernel.lengthscale_prior, type(parse(DEQNNGPKernel, base="affine").lengthscale_prior)
    )
    assert parse(DEQNTKKernel, trained="hidden").trained == "hidden"
    assert parse(DEKerKernel, link="softplus-gaussian", num_steps=2).num_steps == 2
    small = parse(DEKerKernel, link="tanh", step_size=0.5)
    assert float(small.regularization_prior.critical) == pytest.approx(
        small.critical_regularization
    )
    expected = get_covar_module("deq-ntk", ard_num_dims=3, activation="relu")
    assert_same(parse(ScaleDEQKernel, kernel="deq-ntk", activation="relu"), expected)


def test_subclass_has_the_defaults_too() -> None:
    class Noted(DEQNTKKernel):
        def __init__(self, *args: Any, note: str = "", **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    assert_same(parse(Noted, note="mine"), parse(DEQNTKKernel))


@every_class
def test_unknown_option_is_named(cls: type[Kernel]) -> None:
    with pytest.raises(UserInputError, match=rf"^{cls.__name__} has no option 'nu'; it has .*ard"):
        parse(cls, nu=2.5)


def test_bad_values_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"^DEKerKernel has no option 'activation'.* link"):
        parse(DEKerKernel, activation="erf")
    with pytest.raises(ValueError, match="kernel must be 'deq-nngp'"):
        parse(ScaleDEQKernel, kernel="matern")
    with pytest.raises(ValueError, match=r"base of DEQNNGPKernel must be .*got 'linear'"):
        parse(DEQNNGPKernel, base="linear")
    with pytest.raises(ValueError, match="base of DEKerKernel must be 'affine', got 'rbf'"):
        parse(ScaleDEQKernel, kernel="deker", base="rbf")
    with pytest.raises(ValueError, match="activation of bounded slope"):
        parse(DEQNNGPKernel, activation=torch.square)
    with pytest.raises(UserInputError, match="Only one of"):
        parse(DEQNNGPKernel, active_dims=[0], inactive_features=["x1"])


def fit(config: ModelConfig, data: SupervisedDataset) -> Any:
    surrogate = Surrogate(SurrogateSpec(model_configs=[config]))
    bounds = [(0.0, 1.0)] * len(data.feature_names)
    surrogate.fit([data], SearchSpaceDigest(feature_names=data.feature_names, bounds=bounds))
    return surrogate.model


def test_two_metrics_share_a_batched_model() -> None:
    data = dataset(2, 2)
    model = fit(ModelConfig(covar_module_class=ScaleDEQKernel), data)
    assert isinstance(model, SingleTaskGP)
    assert model.covar_module.outputscale.shape == (2,)
    assert base(model.covar_module).lengthscale.shape == (2, 1, 2)
    with torch.no_grad():
        error = model.posterior(data.X).mean - data.Y
    assert float(error.abs().max()) < 0.3


def test_ready_made_kernel_in_a_scale_kernel() -> None:
    options = {"base_kernel": DEQNNGPKernel("erf", center=0.5, ard_num_dims=2)}
    config = ModelConfig(covar_module_class=ScaleKernel, covar_module_options=options)
    kernel = fit(config, dataset(2)).covar_module
    assert isinstance(kernel.base_kernel, DEQNNGPKernel)
    assert kernel.base_kernel is not options["base_kernel"]


def strategy(**config: Any) -> GenerationStrategy:
    spec = SurrogateSpec(model_configs=[ModelConfig(**config)])
    sobol = GeneratorSpec(Generators.SOBOL, generator_kwargs={"seed": 0})
    deq = GeneratorSpec(Generators.BOTORCH_MODULAR, generator_kwargs={"surrogate_spec": spec})
    after = [MinTrials(threshold=4, transition_to="deq")]
    return GenerationStrategy(
        name="sobol+deq",
        nodes=[
            GenerationNode("sobol", generator_specs=[sobol], transition_criteria=after),
            GenerationNode("deq", generator_specs=[deq]),
        ],
    )


def run(client: Client, objective: Any, num_trials: int) -> None:
    for _ in range(num_trials):
        for index, parameters in client.get_next_trials(1).items():
            client.complete_trial(index, raw_data={"loss": float(objective(parameters))})


def surrogate_model(client: Client) -> Any:
    return client._generation_strategy.adapter.generator.surrogate.model


def in_cube(model: Any) -> Tensor:
    """Inputs of the kernel."""
    model.eval()
    return model.train_inputs[0]


X1 = RangeParameterConfig(name="x1", parameter_type="float", bounds=(-5, 10))
X2 = RangeParameterConfig(name="x2", parameter_type="float", bounds=(0, 15))


@pytest.mark.parametrize(
    ("cls", "below"),
    [(DEQNNGPKernel, "affine"), (DEQNNGPKernel, "rbf"), (ScaleDEQKernel, "matern")],
)
def test_client_optimises_branin_and_is_saved(
    cls: type[Kernel], below: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    client = Client(random_seed=0)
    client.configure_experiment(parameters=[X1, X2])
    client.configure_optimization(objective="-loss")
    client.set_generation_strategy(
        strategy(covar_module_class=cls, covar_module_options={"base": below})
    )
    branin = Branin()
    run(client, lambda p: branin(torch.tensor([p["x1"], p["x2"]])), 7)
    model = surrogate_model(client)
    kernel = base(model.covar_module)
    assert type(model.covar_module) is cls
    assert type(kernel) is BASES[below]
    assert kernel.lengthscale.shape == (1, 2)
    assert kernel.lengthscale.dtype == torch.float64
    x = in_cube(model)
    assert len(x) == 6
    assert float(x.min()) >= 0 and 0.5 < float(x.max()) <= 1
    client.save_to_json_file(str(tmp_path / "client.json"))
    loaded = Client.load_from_json_file(str(tmp_path / "client.json"))
    assert loaded.get_next_trials(1)
    again = surrogate_model(loaded).covar_module
    assert type(again) is cls and type(base(again)) is BASES[below]


def test_choices_are_in_the_cube_too() -> None:
    torch.manual_seed(0)
    names = ChoiceParameterConfig(
        name="c", parameter_type="str", values=["u", "v", "w"], is_ordered=False
    )
    sizes = ChoiceParameterConfig(
        name="n", parameter_type="int", values=[1, 2, 4, 8], is_ordered=True
    )
    client = Client(random_seed=0)
    client.configure_experiment(parameters=[X1, names, sizes])
    client.configure_optimization(objective="-loss")
    client.set_generation_strategy(strategy(covar_module_class=ScaleDEQKernel))
    run(client, lambda p: p["x1"] ** 2 + p["n"] * (p["c"] == "u"), 5)
    model = surrogate_model(client)
    x = in_cube(model)
    assert base(model.covar_module).lengthscale.shape == (1, 5)
    assert float(x.min()) >= 0 and float(x.max()) <= 1


def test_missing_ax_names_the_extra() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['ax'] = None; import gp_deq.bayesopt.ax"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ,
    )
    assert result.returncode == 1
    assert 'ImportError: gp_deq.bayesopt.ax needs Ax: pip install "gp_deq[ax]"' in result.stderr
