r"""Equilibrium networks that start as kernel GLMs or at random, and are trained.

After the smooth regression of Tsuchida et al. (2022, "Declarative nets that are equilibrium
models", ICLR), smaller. A sequence is a smooth function at 50 points of :math:`[-2\pi, 2\pi]`,
:math:`0.9 \sin(\omega x + \phi)` with random frequency and phase; the network sees it with noise
and is to return it, in mean square. The network is

.. math:: z = \tanh(W_1 z + W_2 y), \qquad \hat f = \tanh(W_3 z + W_4 y) ,

and all four maps are trained, from three starts: "informed", the maps of `KernelGLM` with an RBF
kernel and a regularization of the kernel matrix's norm; "naive", :math:`W_1 = W_3 = 0` and
:math:`W_2 = W_4 = I`, which passes the noise on; "random", PyTorch's initialisation of linear
layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from gpytorch.kernels import RBFKernel
from torch import Tensor, nn

from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option
from gp_deq.benchmarks.runs import Key, Row, one_thread, spread
from gp_deq.implicit_layers import DEQLayer, KernelGLM, SignedBernoulli

try:
    from joblib import delayed
except ImportError as error:
    raise ImportError(f'the experiment needs {error.name}: pip install "gp_deq[cli]"') from error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EXPERIMENT", "STARTS", "DeclarativeNetwork", "Settings", "Training", "draw", "run"]


@dataclass(frozen=True)
class Settings(Configuration):
    """The experiment.

    Args:
        num_points: Points of a sequence.
        num_train: Sequences to learn from.
        num_test: Sequences to be scored on.
        epochs: Passes over the training sequences.
        batch_size: Sequences of a step of Adam.
        learning_rate: Learning rate of Adam.
        noise: Standard deviation of the noise.
        seeds: Number of data sets and initialisations.

    Raises:
        ValueError: There is no epoch or no seed.
    """

    num_points: int = 50
    num_train: int = 2000
    num_test: int = 500
    epochs: int = option(40, "Passes over the training sequences.")
    batch_size: int = 100
    learning_rate: float = 1e-3
    noise: float = 0.5
    seeds: int = option(10, "Number of repetitions.")

    def __post_init__(self) -> None:
        for name in ("epochs", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    @property
    def keys(self) -> list[Key]:
        """Start, seed and number of epochs of every network."""
        return [(start, seed, self.epochs) for seed in range(self.seeds) for start in STARTS]


class DeclarativeNetwork(nn.Module):
    """An equilibrium and a read-out, each with a map of the state and one of the input.

    Args:
        num_points: Points of a sequence.
    """

    def __init__(self, num_points: int) -> None:
        super().__init__()
        self.layer = DEQLayer(num_points, num_points, "tanh", bias=False, tolerance=1e-4)
        self.from_state = nn.Linear(num_points, num_points, bias=False)
        self.from_input = nn.Linear(num_points, num_points, bias=False)

    def forward(self, y: Tensor) -> Tensor:
        """Estimates of the functions.

        Args:
            y: Observations, ``... x num_points``.
        """
        return (self.from_state(self.layer(y)) + self.from_input(y)).tanh()

    def assign(self, W1: Tensor, W2: Tensor, W3: Tensor, W4: Tensor) -> None:
        """Sets the four maps.

        Args:
            W1: Map of the state in the equilibrium.
            W2: Map of the input in the equilibrium.
            W3: Map of the state in the read-out.
            W4: Map of the input in the read-out.
        """
        with torch.no_grad():
            self.layer.recurrent.weight.copy_(W1)
            self.layer.injection.weight.copy_(W2)
            self.from_state.weight.copy_(W3)
            self.from_input.weight.copy_(W4)


def _points(num_points: int) -> Tensor:
    return torch.linspace(-2 * math.pi, 2 * math.pi, num_points).unsqueeze(-1)


def _informed(network: DeclarativeNetwork, num_points: int) -> None:
    X = _points(num_points)
    glm = KernelGLM(RBFKernel(), SignedBernoulli())
    with torch.no_grad():
        glm.kernel.lengthscale = 1.0
        glm.regularization = torch.linalg.matrix_norm(glm.kernel(X).to_dense(), 2)
        network.assign(*glm.weights(X))


def _naive(network: DeclarativeNetwork, num_points: int) -> None:
    zero, eye = torch.zeros(num_points, num_points), torch.eye(num_points)
    network.assign(zero, eye, zero, eye)


#: Changes that the starts make to a network of PyTorch's initialisation, by name.
STARTS: Mapping[str, Callable[[DeclarativeNetwork, int], None]] = {
    "informed": _informed,
    "naive": _naive,
    "random": lambda network, num_points: None,
}


@dataclass(frozen=True)
class Training(Row):
    """A trained network; a row of the CSV file.

    Args:
        start: One of `STARTS`.
        seed: Seed of data and initialisation.
        losses: Mean squared error of the test functions before and after each epoch.
    """

    start: str
    seed: int
    losses: tuple[float, ...]

    keys = ("start", "seed", "epochs")
    parsers: ClassVar = {"losses": lambda cell: tuple(map(float, cell.split()))}
    formats: ClassVar = {"losses": lambda losses: " ".join(map(repr, losses))}

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return len(self.losses) - 1

    @property
    def label(self) -> str:
        """A description for the progress bar."""
        return f"{self.start}, seed {self.seed}"


def sequences(settings: Settings, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random functions and their noisy observations, ``count x num_points``.

    Args:
        settings: The experiment.
        count: Number of functions.
        generator: Source of the random numbers.
    """
    x = _points(settings.num_points).squeeze(-1)
    frequency = 0.3 + 0.9 * torch.rand(count, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
    f = 0.9 * (frequency * x + phase).sin()
    return f, f + settings.noise * torch.randn(f.shape, generator=generator)


@one_thread()
def run(start: str, seed: int, settings: Settings) -> Training:
    """Train a network.

    Args:
        start: One of `STARTS`.
        seed: Seed of data and initialisation; starts of one seed see the same data.
        settings: The experiment.
    """
    generator = torch.Generator().manual_seed(seed)
    f, y = sequences(settings, settings.num_train, generator)
    test_f, test_y = sequences(settings, settings.num_test, generator)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = DeclarativeNetwork(settings.num_points)
    STARTS[start](network, settings.num_points)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)

    def score() -> float:
        with torch.no_grad():
            return (network(test_y) - test_f).square().mean().item()

    losses = [score()]
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(f), generator=generator).split(settings.batch_size):
            optimizer.zero_grad()
            (network(y[batch]) - f[batch]).square().mean().backward()
            optimizer.step()
        losses.append(score())
    return Training(start, seed, tuple(losses))


def draw(trainings: Sequence[Training], figure: Figure) -> None:
    """Losses by epoch: means and 95 % intervals of means over seeds.

    Args:
        trainings: Trained networks of several starts and seeds.
        figure: Drawn into.
    """
    from scipy import stats

    axes = figure.subplots()
    for start in STARTS:
        losses = torch.tensor([t.losses for t in trainings if t.start == start])
        if not len(losses):
            continue
        mean = losses.mean(0)
        (line,) = axes.plot(mean, label=start)
        if len(losses) > 1:
            half = stats.t.ppf(0.975, len(losses) - 1) * losses.std(0) / len(losses) ** 0.5
            epochs = range(len(mean))
            axes.fill_between(epochs, mean - half, mean + half, alpha=0.25, color=line.get_color())
    axes.set(yscale="log", xlabel="epoch", ylabel="mean squared error of held-out functions")
    axes.set_title(f"Three starts of one network, {len({t.seed for t in trainings})} seeds")
    axes.grid(alpha=0.2)
    axes.legend()


def _run(config: Settings, keys: Iterator[Key], tell: Callable[[str], None]) -> Iterator[Training]:
    return spread(delayed(run)(start, seed, config) for start, seed, _ in keys)


def _tables(config: Settings, trainings: Sequence[Training]) -> Iterator[Table]:
    shown = [epoch for epoch in (0, 1, 5, 10, 20, 40) if epoch < config.epochs]
    shown.append(config.epochs)
    rows = []
    for start in STARTS:
        losses = [training.losses for training in trainings if training.start == start]
        if losses:
            means = torch.tensor(losses).mean(0)
            rows.append([start, *(f"{means[epoch]:.4f}" for epoch in shown)])
    names = ["before" if epoch == 0 else f"epoch {epoch}" for epoch in shown]
    yield Table("Mean squared error of held-out functions", ["start", *names], rows)


def _figure(config: Settings, trainings: Sequence[Training]) -> Figure | None:
    from matplotlib.figure import Figure

    if not trainings:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    draw(trainings, figure)
    return figure


EXPERIMENT = Experiment(
    name="declarative",
    configuration=Settings,
    row=Training,
    run=_run,
    tables=_tables,
    figure=_figure,
)
