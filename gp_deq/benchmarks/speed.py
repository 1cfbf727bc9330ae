r"""Time and memory of the kernels beside their peers: ``gp-deq benchmark speed``.

What is measured is one step of marginal-likelihood learning as far as the kernel is concerned: the
dense matrix ``K`` of ``ScaleKernel(kernel)`` at ``n`` standard normal inputs, then
``(K * C).sum().backward()`` for a fixed random ``C``, in float64, where the hyperparameters
require gradients and the inputs do not.

* **Time.** Within a section the kernels take turns: each round runs every kernel once, in an order
  drawn anew, after warm-up rounds that are thrown away. A ratio is the ratio of the medians of one
  such interleaved run, so what slows the machine for a while slows both terms.
* **Memory.** Each measurement has a process of its own, which runs the kernel once on a small
  matrix, resets the kernel's high-water mark of resident memory, runs the full step and reads the
  mark: the peak above what was resident before. It is what the operating system had to provide,
  including what libraries take on the side. The C library is told to return freed blocks above
  64 KiB at once (``MALLOC_MMAP_THRESHOLD_``), so that fragments of a heap do not count. Where the
  mark cannot be reset (other systems than Linux) the growth of ``ru_maxrss`` stands in for it.
* **Acquisition.** A t-batch, ``256 x 1 x 10`` test points against ``256 x 100 x 10`` training
  points, forward and backward with respect to the test points.
"""

import csv
import ctypes
import gc
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import gpytorch
import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel

from gp_deq.kernels import DEKerKernel, DEQNNGPKernel, DEQNTKKernel, NNGPKernel, NTKKernel

try:
    from botorch.models.kernels import InfiniteWidthBNNKernel
except ImportError as error:
    raise ImportError(
        'the benchmarks compare with kernels of BoTorch: pip install "gp_deq[bo]"'
    ) from error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gp_deq.plotting import Series

__all__ = [
    "MATERN",
    "RBF",
    "KernelSpec",
    "Record",
    "SpeedConfig",
    "Target",
    "check_targets",
    "conditions",
    "draw",
    "infinite_width_bnn",
    "interleaved_times",
    "max_resident",
    "peak_memory",
    "read_csv",
    "run_speed",
    "write_csv",
]

_MIB = 2.0**20
#: For the environment of a process whose peak memory is measured: glibc takes every block of 64 KiB
#: or more from the system and gives it back when freed, so that freed memory is not counted.
FREED_BLOCKS_GO_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}


def _matern(ard_num_dims: int) -> Kernel:
    return MaternKernel(2.5, ard_num_dims=ard_num_dims)


def _infinite_width_bnn(ard_num_dims: int, depth: int) -> Kernel:
    return InfiniteWidthBNNKernel(depth=depth)  # without lengthscales


def _deker_steps(ard_num_dims: int) -> Kernel:
    return DEKerKernel(num_steps=3, ard_num_dims=ard_num_dims)


def _deker_tanh(ard_num_dims: int) -> Kernel:
    return DEKerKernel("tanh", ard_num_dims=ard_num_dims)


_FAMILIES: Mapping[str, Callable[..., Kernel]] = {
    "DEQ-NNGP": DEQNNGPKernel,
    "DEQ-NTK": DEQNTKKernel,
    "DEKer": DEKerKernel,
    "DEKer, 3 steps": _deker_steps,
    "DEKer, link tanh": _deker_tanh,
    "NNGP": NNGPKernel,
    "NTK": NTKKernel,
    "Matérn-5/2": _matern,
    "RBF": RBFKernel,
    "InfiniteWidthBNN": _infinite_width_bnn,
}


@dataclass(frozen=True)
class KernelSpec:
    """A kernel by name, so that it can be built in another process.

    Args:
        family: ``"DEQ-NNGP"``, ``"DEQ-NTK"``, ``"DEKer"`` (fixed point, link and features "relu"),
            ``"DEKer, 3 steps"``, ``"DEKer, link tanh"``, ``"NNGP"``, ``"NTK"``, or one of the peers
            ``"Matérn-5/2"``, ``"RBF"``, ``"InfiniteWidthBNN"``.
        activation: Of this package's kernels.
        depth: Of the finite-depth kernels.
        weight_variance: Replaces the initial value.
    """

    family: str
    activation: str | None = None
    depth: int | None = None
    weight_variance: float | None = None

    @property
    def label(self) -> str:
        """The name in tables."""
        parts = [self.family]
        if self.activation is not None:
            parts.append(self.activation)
        if self.depth is not None:
            parts.append(f"depth {self.depth}")
        if self.weight_variance is not None:
            parts.append(f"w={self.weight_variance:g}")
        return " ".join(parts)

    def build(self, num_dims: int) -> ScaleKernel:
        """The kernel inside a ScaleKernel, float64.

        Args:
            num_dims: Number of input dimensions, one lengthscale each where the kernel has ARD.

        Returns:
            The kernel.
        """
        if self.family not in _FAMILIES:
            raise ValueError(f"unknown family {self.family!r}; there are {', '.join(_FAMILIES)}")
        options = {"activation": self.activation, "depth": self.depth}
        given = {name: value for name, value in options.items() if value is not None}
        kernel = ScaleKernel(_FAMILIES[self.family](ard_num_dims=num_dims, **given)).double()
        if self.weight_variance is not None:
            kernel.base_kernel.weight_variance = self.weight_variance
        return kernel


MATERN = KernelSpec("Matérn-5/2")
RBF = KernelSpec("RBF")


def infinite_width_bnn(depth: int) -> KernelSpec:
    """BoTorch's kernel.

    Args:
        depth: Number of layers.

    Returns:
        Its specification.
    """
    return KernelSpec("InfiniteWidthBNN", depth=depth)


def _deq(activation: str, weight_variance: float | None = None) -> KernelSpec:
    return KernelSpec("DEQ-NNGP", activation, weight_variance=weight_variance)


def _nngp(depth: int) -> KernelSpec:
    return KernelSpec("NNGP", "relu", depth=depth)


_DEQ_NTK = KernelSpec("DEQ-NTK", "relu")
_DEKERS = (KernelSpec("DEKer"), KernelSpec("DEKer, 3 steps"))
_ACTIVATIONS = ("relu", "erf", "gelu", "sin", "tanh", "sigmoid", "silu", "softplus", "elu")


@dataclass(frozen=True)
class SpeedConfig:
    """Sizes of the benchmark.

    Args:
        n: Inputs of the main comparison.
        num_dims: Input dimensions.
        rounds: Rounds of the main comparison and of the t-batches.
        sweep_rounds: Rounds at each point of the sweeps over n and depth.
        warmup: Rounds thrown away before each.
        sizes: Values of n in the sweep over time.
        memory_sizes: Values of n in the sweep over memory.
        depths: Depths in the sweeps.
        depth_n: Inputs in the sweeps over depth.
        weight_variances: Of the sweep that varies the number of solver iterations.
        batch: Shape of the t-batch: batch, training points, dimensions.
        memory: Whether to measure memory.
        seed: Of inputs and order.
    """

    n: int = 2000
    num_dims: int = 8
    rounds: int = 7
    sweep_rounds: int = 3
    warmup: int = 1
    sizes: tuple[int, ...] = (500, 1000, 2000, 4000)
    memory_sizes: tuple[int, ...] = (1000, 2000, 4000)
    depths: tuple[int, ...] = (1, 3, 10, 50)
    depth_n: int = 1000
    weight_variances: tuple[float, ...] = (0.1, 1.0, 1.9, 1.98, 1.9998)
    batch: tuple[int, int, int] = (256, 100, 10)
    memory: bool = True
    seed: int = 0

    @classmethod
    def quick(cls) -> "SpeedConfig":
        """Sizes that take seconds and whose figures mean nothing."""
        return cls(
            n=128,
            num_dims=3,
            rounds=2,
            sweep_rounds=1,
            sizes=(64, 128),
            memory_sizes=(128,),
            depths=(1, 3),
            depth_n=64,
            weight_variances=(1.0,),
            batch=(4, 8, 3),
        )

    # What is measured where.

    @property
    def main_kernels(self) -> list[KernelSpec]:
        """Kernels of the main comparison."""
        ours = [_deq(activation) for activation in _ACTIVATIONS]
        ours[1:1] = [_deq("relu", 1.98), _DEQ_NTK]
        tangent = [KernelSpec("DEQ-NTK", activation) for activation in ("erf", "tanh")]
        dekers = [*_DEKERS, KernelSpec("DEKer, link tanh")]
        finite = [_nngp(3), KernelSpec("NTK", "relu", depth=3), _nngp(10)]
        return [MATERN, RBF, infinite_width_bnn(3), *ours, *tangent, *dekers, *finite]

    @property
    def size_kernels(self) -> list[KernelSpec]:
        """Kernels of the sweeps over n."""
        return [
            MATERN,
            RBF,
            infinite_width_bnn(3),
            _deq("relu"),
            _DEQ_NTK,
            _deq("erf"),
            _deq("tanh"),
            *_DEKERS,
        ]

    @property
    def depth_kernels(self) -> list[KernelSpec]:
        """Kernels of the sweeps over depth; those without a depth are measured once."""
        finite = [kind(depth) for kind in (infinite_width_bnn, _nngp) for depth in self.depths]
        return [MATERN, _deq("relu"), _DEQ_NTK, *finite]

    @property
    def batch_kernels(self) -> list[KernelSpec]:
        """Kernels of the t-batch comparison."""
        return [MATERN, RBF, infinite_width_bnn(3), *(_deq(a) for a in ("relu", "erf", "tanh"))]

    @property
    def memory_jobs(self) -> dict[str, list[tuple[KernelSpec, int]]]:
        """For each section on memory, the kernels and sizes."""
        weights = [_deq("relu", w) for w in self.weight_variances]
        return {
            "memory-n": [(spec, n) for n in self.memory_sizes for spec in self.size_kernels],
            "memory-depth": [(spec, self.depth_n) for spec in self.depth_kernels],
            "memory-w": [(spec, self.n) for spec in (MATERN, *weights)],
        }

    @property
    def num_steps(self) -> int:
        """How often `run_speed` calls ``on_step``."""
        main = len(self.main_kernels) * (self.rounds + self.warmup)
        batch = len(self.batch_kernels) * (5 * self.rounds + self.warmup)
        each = self.sweep_rounds + self.warmup
        sweeps = (len(self.size_kernels) * len(self.sizes) + len(self.depth_kernels)) * each
        memory = sum(map(len, self.memory_jobs.values())) if self.memory else 0
        return main + 1 + batch + sweeps + memory


@dataclass(frozen=True)
class Record:
    """One measurement.

    Args:
        section: ``"main"``, ``"kept-pages"``, ``"batch"``, ``"time-n"``, ``"time-depth"``,
            ``"memory-n"``, ``"memory-depth"`` or ``"memory-w"``.
        kernel: Label of the kernel.
        n: Number of inputs (training points in ``"batch"``).
        depth: Depth of the kernel, if it has one.
        unit: ``"s"`` or ``"MiB"``.
        value: Median of the times, or the peak.
        low: Lower quartile.
        high: Upper quartile.
        ratio: To Matérn-5/2 at the same place in the same run.
        rounds: How many measurements the median is of.
    """

    section: str
    kernel: str
    n: int
    depth: int | None
    unit: str
    value: float
    low: float
    high: float
    ratio: float
    rounds: int

    @property
    def family(self) -> str:
        """The kernel's label without its depth."""
        return self.kernel.removesuffix(f" depth {self.depth}")


@dataclass(frozen=True)
class Target:
    """A bound on a ratio, and what was measured.

    Args:
        what: Description.
        bound: The ratio allowed.
        measured: The ratio found.
    """

    what: str
    bound: float
    measured: float

    @property
    def met(self) -> bool:
        """Whether the measured ratio is within the bound."""
        return self.measured <= self.bound


@dataclass(frozen=True)
class _Inputs:
    """Inputs and cotangent of one size."""

    x: torch.Tensor
    cotangent: torch.Tensor

    @classmethod
    def draw(cls, n: int, num_dims: int, seed: int) -> "_Inputs":
        generator = torch.Generator().manual_seed(seed)
        return cls(
            torch.randn(n, num_dims, dtype=torch.float64, generator=generator),
            torch.randn(n, n, dtype=torch.float64, generator=generator),
        )


def _training_step(kernel: ScaleKernel, inputs: _Inputs) -> None:
    # One expression: no name keeps the matrix alive during the backward pass.
    (kernel(inputs.x).to_dense() * inputs.cotangent).sum().backward()


def _give_back_memory() -> None:
    """Return the free memory of the C library's heap to the system, with glibc."""
    if platform.system() == "Linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def interleaved_times(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda name: None,
    fresh_pages: bool = True,
) -> dict[str, list[float]]:
    """Time several functions in turns.

    Args:
        steps: The functions by name.
        rounds: How often each is timed.
        warmup: Rounds run before, untimed.
        seed: Of the order within each round.
        on_step: Called with the name after every call.
        fresh_pages: Whether to give free memory back to the operating system before every call.

    Returns:
        For each name its wall times in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    shuffle = random.Random(seed).shuffle
    gc.collect()
    gc.freeze()  # what is there already need not be looked at again
    try:
        for i in range(warmup + rounds):
            shuffle(order)
            for name in order:
                gc.collect()
                if fresh_pages:
                    _give_back_memory()
                start = time.perf_counter()
                steps[name]()
                elapsed = time.perf_counter() - start
                if i >= warmup:
                    times[name].append(elapsed)
                on_step(name)
    finally:
        gc.unfreeze()
    return times


def _time_records(
    section: str, specs: Iterable[KernelSpec], times: Mapping[str, list[float]], n: int
) -> list[Record]:
    reference = statistics.median(times[MATERN.label])
    records = []
    for spec in specs:
        values = times[spec.label]
        median = statistics.median(values)
        low, high = median, median
        if len(values) > 1:
            low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        ratio = median / reference
        records.append(
            Record(section, spec.label, n, spec.depth, "s", median, low, high, ratio, len(values))
        )
    return records


def _time_training(
    section: str,
    specs: Sequence[KernelSpec],
    n: int,
    config: SpeedConfig,
    rounds: int,
    on_step: Callable[[str], None],
    fresh_pages: bool = True,
) -> list[Record]:
    inputs = _Inputs.draw(n, config.num_dims, config.seed)
    kernels = {spec.label: spec.build(config.num_dims) for spec in specs}

    def step(kernel: ScaleKernel) -> Callable[[], None]:
        return lambda: _training_step(kernel, inputs)

    times = interleaved_times(
        {name: step(kernel) for name, kernel in kernels.items()},
        rounds,
        config.warmup,
        config.seed,
        lambda name: on_step(f"{name}, n = {n}"),
        fresh_pages,
    )
    return _time_records(section, specs, times, n)


def _time_batches(config: SpeedConfig, on_step: Callable[[str], None]) -> list[Record]:
    batch, n, num_dims = config.batch
    generator = torch.Generator().manual_seed(config.seed)
    train = torch.rand(n, num_dims, dtype=torch.float64, generator=generator)
    train = train.expand(batch, n, num_dims)
    test = torch.rand(batch, 1, num_dims, dtype=torch.float64, generator=generator)
    test.requires_grad_()
    cotangent = torch.randn(batch, 1, n, dtype=torch.float64, generator=generator)

    def step(kernel: ScaleKernel) -> Callable[[], None]:
        def run() -> None:
            matrix = kernel(test, train).to_dense()
            torch.autograd.grad((matrix * cotangent).sum(), test)

        return run

    specs = config.batch_kernels
    times = interleaved_times(
        {spec.label: step(spec.build(num_dims)) for spec in specs},
        5 * config.rounds,
        config.warmup,
        config.seed,
        lambda name: on_step(f"{name}, t-batch"),
        fresh_pages=False,  # small blocks, which an optimiser of acquisitions does find in the heap
    )
    return _time_records("batch", specs, times, n)


def _status(key: str) -> float:
    """A field of this process's status file in MiB (Linux)."""
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"no {key} in /proc/self/status")
    return int(match.group(1)) / 1024


def max_resident() -> float:
    """Largest memory in MiB that the process has held."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MIB if platform.system() == "Darwin" else 1024)


def _peak_above_start(function: Callable[[], object]) -> float:
    """Peak resident memory in MiB while a function runs, above what was resident before."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        function()
        return _status("VmHWM") - before
    except OSError:
        before = max_resident()
        function()
        return max_resident() - before


def _in_process(function: str, arguments: object, environment: Mapping[str, str]) -> object:
    """Call a function of this module in a fresh process.

    Args:
        function: Its name.
        arguments: Its only argument, anything that JSON can carry.
        environment: Variables for the process, the C library's settings among them.

    Returns:
        What the function returned, through JSON.
    """
    code = (
        "import json, sys; from gp_deq.benchmarks import speed;"
        "print(json.dumps(getattr(speed, sys.argv[1])(json.loads(sys.argv[2]))))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    result = subprocess.run(
        [sys.executable, "-c", code, function, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    if result.returncode != 0:
        raise RuntimeError(f"{function}({arguments}) failed in its process:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def _memory_worker(options: dict) -> float:
    """Peak memory in this process; called by `peak_memory` in another."""
    kernel = KernelSpec(**options["spec"]).build(options["num_dims"])
    torch.set_num_threads(options["threads"])
    _training_step(kernel, _Inputs.draw(32, options["num_dims"], 0))
    kernel.zero_grad()
    inputs = _Inputs.draw(options["n"], options["num_dims"], 0)
    return _peak_above_start(lambda: _training_step(kernel, inputs))


def peak_memory(spec: KernelSpec, n: int, num_dims: int) -> float:
    """Peak memory of one forward and backward pass, measured in a fresh process.

    Args:
        spec: The kernel.
        n: Number of inputs.
        num_dims: Their dimensions.

    Returns:
        The peak in MiB, above what inputs, cotangent and libraries take.
    """
    options = {
        "spec": asdict(spec),
        "n": n,
        "num_dims": num_dims,
        "threads": torch.get_num_threads(),
    }
    peak = _in_process("_memory_worker", options, FREED_BLOCKS_GO_BACK)
    assert isinstance(peak, float)
    return peak


def _kept_pages_worker(options: dict) -> list[dict]:
    """Times where the heap keeps its pages; called by `_time_kept_pages` in another process."""
    torch.set_num_threads(options.pop("threads"))
    options["batch"] = tuple(options["batch"])
    config = SpeedConfig(**options)
    specs = config.main_kernels
    records = _time_training(
        "kept-pages", specs, config.n, config, config.rounds, lambda name: None, fresh_pages=False
    )
    return [asdict(record) for record in records]


def _time_kept_pages(config: SpeedConfig, on_step: Callable[[str], None]) -> list[Record]:
    options = asdict(config) | {"threads": torch.get_num_threads()}
    settings = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    rows = _in_process("_kept_pages_worker", options, settings)
    assert isinstance(rows, list)
    on_step("kept pages")
    return [Record(**row) for row in rows]


def _memory_records(
    section: str, config: SpeedConfig, on_step: Callable[[str], None]
) -> list[Record]:
    jobs = config.memory_jobs[section]

    def measure(job: tuple[KernelSpec, int]) -> float:
        spec, n = job
        peak = peak_memory(spec, n, config.num_dims)
        on_step(f"memory of {spec.label}, n = {n}")
        return peak

    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        peaks = list(pool.map(measure, jobs))
    reference = {n: peak for (spec, n), peak in zip(jobs, peaks) if spec == MATERN}
    return [
        Record(section, spec.label, n, spec.depth, "MiB", peak, peak, peak, peak / reference[n], 1)
        for (spec, n), peak in zip(jobs, peaks)
    ]


def run_speed(
    config: SpeedConfig | None = None,
    on_step: Callable[[str], None] = lambda description: None,
    finished: Sequence[Record] = (),
) -> Iterator[list[Record]]:
    """Run the benchmark section by section.

    Args:
        config: Sizes; the full ones if None.
        on_step: Called with what has just been measured, ``config.num_steps`` times if nothing is
            finished.
        finished: Measurements of an earlier run of the same sizes, whose sections are not repeated.

    Yields:
        The measurements of one section.
    """
    config = config or SpeedConfig()

    def training(section: str, specs: list[KernelSpec], n: int, rounds: int) -> list[Record]:
        return _time_training(section, specs, n, config, rounds, on_step)

    sections: dict[str, Callable[[], list[Record]]] = {
        "main": lambda: training("main", config.main_kernels, config.n, config.rounds),
        "kept-pages": lambda: _time_kept_pages(config, on_step),
        "batch": lambda: _time_batches(config, on_step),
        "time-n": lambda: [
            record
            for n in config.sizes
            for record in training("time-n", config.size_kernels, n, config.sweep_rounds)
        ],
        "time-depth": lambda: training(
            "time-depth", config.depth_kernels, config.depth_n, config.sweep_rounds
        ),
    }
    if config.memory:
        for section in ("memory-n", "memory-depth", "memory-w"):
            sections[section] = partial(_memory_records, section, config, on_step)
    for section, measure in sections.items():
        found = [record for record in finished if record.section == section]
        yield found or measure()


def check_targets(records: Sequence[Record], n: int) -> list[Target]:
    """Compare with what the package promises.

    Args:
        records: Measurements of `run_speed`.
        n: The size at which memory is compared.

    Returns:
        Every target whose measurements are there.
    """
    found = {(r.section, r.kernel, r.n): r for r in records}
    batch = {r.kernel: r for r in records if r.section == "batch"}
    relu, bnn = _deq("relu").label, infinite_width_bnn(3).label
    targets = []
    bounds = {relu: 1.0, _deq("relu", 1.98).label: 1.1, _DEQ_NTK.label: 2.0, _deq("erf").label: 2.5}
    bounds |= {_deq(name).label: 6.0 for name in ("tanh", "sigmoid", "silu", "softplus", "elu")}
    bounds |= {spec.label: 3.0 for spec in _DEKERS}
    for pages in ("main", "kept-pages"):
        there = {r.kernel: r for r in records if r.section == pages}
        where = {"main": "fresh pages", "kept-pages": "kept pages"}[pages]
        for label, bound in bounds.items():
            what = f"{label}: time / Matérn-5/2, {where}"
            targets.append(Target(what, bound, there[label].ratio))
        quotient = there[relu].value / there[bnn].value
        targets.append(Target(f"{relu}: time / {bnn}, {where}", 0.3, quotient))
    for activation, bound in (("relu", 2.0), ("erf", 3.0)):
        label = _deq(activation).label
        targets.append(Target(f"{label}: t-batch time / Matérn-5/2", bound, batch[label].ratio))
    memory = {relu: 0.5, _DEQ_NTK.label: 2.0} | {spec.label: 2.0 for spec in _DEKERS}
    for label, bound in memory.items():
        if ("memory-n", label, n) in found:
            ratio = found["memory-n", label, n].ratio
            targets.append(Target(f"{label}: peak memory / Matérn-5/2", bound, ratio))
    peaks = [r.value for r in records if r.section == "memory-w" and r.kernel != MATERN.label]
    if peaks:
        targets.append(
            Target(
                f"{relu}: largest / smallest peak over weight variances",
                1.05,
                max(peaks) / min(peaks),
            )
        )
    return targets


def conditions() -> str:
    """The machine and the versions, for the record.

    Returns:
        One line.
    """
    from importlib.metadata import version

    return (
        f"torch {torch.__version__}, gpytorch {gpytorch.__version__}, "
        f"botorch {version('botorch')}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"{torch.get_num_threads()} threads, float64"
    )


def write_csv(records: Sequence[Record], path: str | os.PathLike[str]) -> None:
    """Save the measurements.

    Args:
        records: The measurements.
        path: Of the file; one row for each, the names of `Record` on top.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Record)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)


def read_csv(path: str | os.PathLike[str]) -> list[Record]:
    """The measurements in a file of `write_csv`.

    Args:
        path: Of the file.

    Returns:
        The measurements; none if there is no file.

    Raises:
        ValueError: the file is of another origin.
    """
    types: dict[str, Callable[[str], object]] = {
        **dict.fromkeys(("section", "kernel", "unit"), str),
        **dict.fromkeys(("n", "rounds"), int),
        "depth": lambda text: int(text) if text else None,
    }
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        parsed = [{k: types.get(k, float)(v) for k, v in row.items()} for row in rows]
        return [Record(**row) for row in parsed]  # type: ignore[arg-type]
    except FileNotFoundError:
        return []
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a file of this benchmark.") from error


def draw(records: Sequence[Record], targets: Sequence[Target]) -> "Figure":
    """The figure: ratios with their targets, and times and memory against n and depth.

    The ratios are those where the heap keeps its pages, which are the less favourable ones.

    Args:
        records: Of `run_speed`.
        targets: Of `check_targets`.

    Returns:
        The figure.
    """
    from gp_deq.plotting import Bar, Series, speed_figure

    bounds = {target.what: target.bound for target in targets}
    bars = [
        Bar(r.kernel, r.ratio, bounds.get(f"{r.kernel}: time / Matérn-5/2, kept pages"))
        for r in records
        if r.section == "kept-pages"
    ]
    lines: dict[tuple[str, str], list[Series]] = {}
    for quantity, unit, title in (("time", "s", "time"), ("memory", "MiB", "peak memory")):
        by_n = _lines([r for r in records if r.section == f"{quantity}-n"], lambda r: r.n)
        if by_n:
            lines["n (InfiniteWidthBNN: depth 3)", f"{title} [{unit}]"] = by_n
        rows = [r for r in records if r.section == f"{quantity}-depth"]
        if rows:
            depths = sorted({r.depth for r in rows if r.depth is not None})
            flat = [Series(r.family, depths, [r.value] * len(depths)) for r in rows if not r.depth]
            deep = _lines([r for r in rows if r.depth], lambda r: r.depth or 0)
            lines[f"depth (n = {rows[0].n})", f"{title} [{unit}]"] = flat + deep
    label = "time relative to Matérn-5/2, heap kept"
    return speed_figure(bars, lines, title=conditions(), bars_label=label)


def _lines(records: Sequence[Record], abscissa: Callable[[Record], int]) -> "list[Series]":
    """One line for each kernel; in order of the abscissa."""
    from gp_deq.plotting import Series

    series = []
    for family in dict.fromkeys(r.family for r in records):
        rows = sorted((r for r in records if r.family == family), key=abscissa)
        series.append(Series(family, [abscissa(r) for r in rows], [r.value for r in rows]))
    return series
