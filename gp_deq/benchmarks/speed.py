r"""Time and memory of the kernels beside Matern-5/2, RBF and InfiniteWidthBNNKernel.

The measurement is one step of marginal-likelihood learning as far as the kernel is concerned: the
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

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from gpytorch.kernels import ScaleKernel

from gp_deq.benchmarks.experiment import Configuration, Experiment, Table, option
from gp_deq.benchmarks.runs import Key, Row
from gp_deq.benchmarks.speed_figure import draw
from gp_deq.benchmarks.speed_kernels import (
    DEKERS,
    DEQ_NTK,
    MATERN,
    OVER,
    RBF,
    KernelSpec,
    deq_nngp,
    infinite_width_bnn,
    nngp,
)
from gp_deq.benchmarks.timing import (
    FREED_BLOCKS_GO_BACK,
    conditions,
    in_process,
    interleaved_times,
    peak_above_start,
)

__all__ = [
    "EXPERIMENT",
    "KernelSpec",
    "Record",
    "SpeedConfig",
    "Target",
    "check_targets",
    "peak_memory",
    "tables",
]

_ACTIVATIONS = ("relu", "erf", "gelu", "sin", "tanh", "sigmoid", "silu", "softplus", "elu")


@dataclass(frozen=True)
class SpeedConfig(Configuration):
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
        weight_variances: Weight variances, which vary the number of solver iterations.
        batch: Shape of the t-batch: batch, training points, dimensions.
        memory: Whether to measure memory.
        seed: Seed of inputs and order.
    """

    n: int = option(2000, "Inputs of the main comparison.")
    num_dims: int = option(8, "Input dimensions.")
    rounds: int = option(7, "Rounds of the main comparison.")
    sweep_rounds: int = option(3, "Rounds of the sweeps.")
    warmup: int = option(1, "Rounds thrown away before.")
    sizes: tuple[int, ...] = option((500, 1000, 2000, 4000), "Inputs of the sweep over time.")
    memory_sizes: tuple[int, ...] = option((1000, 2000, 4000), "Inputs of the sweep over memory.")
    depths: tuple[int, ...] = option((1, 3, 10, 50), "Depths in the sweeps over depth.")
    depth_n: int = option(1000, "Inputs of the sweeps over depth.")
    weight_variances: tuple[float, ...] = option(
        (0.1, 1.0, 1.9, 1.98, 1.9998), "Weight variances in the sweep over memory."
    )
    batch: tuple[int, int, int] = (256, 100, 10)
    memory: bool = option(True, "Measure memory too.")
    seed: int = option(0, "Seed of inputs and order.")

    presets: ClassVar = {"quick": "Tiny sizes, to see that it runs."}

    @classmethod
    def quick(cls) -> SpeedConfig:
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

    @property
    def main_kernels(self) -> list[KernelSpec]:
        """Kernels of the main comparison."""
        ours = [deq_nngp(activation) for activation in _ACTIVATIONS]
        ours[1:1] = [deq_nngp("relu", 1.98), DEQ_NTK]
        tangent = [KernelSpec("DEQ-NTK", activation) for activation in ("erf", "tanh")]
        dekers = [*DEKERS, KernelSpec("DEKer, link tanh")]
        finite = [nngp(3), KernelSpec("NTK", "relu", depth=3), nngp(10)]
        return [MATERN, RBF, infinite_width_bnn(3), *ours, *tangent, *dekers, *finite, *OVER]

    @property
    def size_kernels(self) -> list[KernelSpec]:
        """Kernels of the sweeps over n."""
        return [
            MATERN,
            RBF,
            infinite_width_bnn(3),
            deq_nngp("relu"),
            DEQ_NTK,
            deq_nngp("erf"),
            deq_nngp("tanh"),
            *DEKERS,
        ]

    @property
    def depth_kernels(self) -> list[KernelSpec]:
        """Kernels of the sweeps over depth; those without a depth are measured once."""
        finite = [kind(depth) for kind in (infinite_width_bnn, nngp) for depth in self.depths]
        return [MATERN, deq_nngp("relu"), DEQ_NTK, *finite]

    @property
    def batch_kernels(self) -> list[KernelSpec]:
        """Kernels of the t-batch comparison."""
        ours = [deq_nngp(activation) for activation in ("relu", "erf", "tanh")]
        return [MATERN, RBF, infinite_width_bnn(3), *ours, *OVER]

    @property
    def memory_jobs(self) -> dict[str, list[tuple[KernelSpec, int]]]:
        """For each section on memory, the kernels and sizes."""
        weights = [deq_nngp("relu", w) for w in self.weight_variances]
        return {
            "memory-n": [(spec, n) for n in self.memory_sizes for spec in self.size_kernels],
            "memory-depth": [(spec, self.depth_n) for spec in self.depth_kernels],
            "memory-w": [(spec, self.n) for spec in (MATERN, *weights)],
            "memory-base": [(spec, self.n) for spec in (MATERN, RBF, *OVER)],
        }

    @property
    def sections(self) -> dict[str, list[tuple[KernelSpec, int]]]:
        """Kernels and sizes of each section, in the order in which they are measured."""
        main = [(spec, self.n) for spec in self.main_kernels]
        return {
            "main": main,
            "kept-pages": main,
            "batch": [(spec, self.batch[1]) for spec in self.batch_kernels],
            "time-n": [(spec, n) for n in self.sizes for spec in self.size_kernels],
            "time-depth": [(spec, self.depth_n) for spec in self.depth_kernels],
            **(self.memory_jobs if self.memory else {}),
        }

    @property
    def keys(self) -> list[Key]:
        """Section, kernel and size of every measurement."""
        return [
            (section, spec.label, n) for section, jobs in self.sections.items() for spec, n in jobs
        ]


@dataclass(frozen=True)
class Record(Row):
    """One measurement.

    Args:
        section: ``"main"``, ``"kept-pages"``, ``"batch"``, ``"time-n"``, ``"time-depth"``,
            ``"memory-n"``, ``"memory-depth"``, ``"memory-w"`` or ``"memory-base"``.
        kernel: The label of the kernel.
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

    keys = ("section", "kernel", "n")
    parsers: ClassVar = {"depth": lambda cell: int(cell) if cell else None}
    formats: ClassVar = {"depth": lambda depth: "" if depth is None else str(depth)}

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
    def draw(cls, n: int, num_dims: int, seed: int) -> _Inputs:
        generator = torch.Generator().manual_seed(seed)
        return cls(
            torch.randn(n, num_dims, dtype=torch.float64, generator=generator),
            torch.randn(n, n, dtype=torch.float64, generator=generator),
        )


def _training_step(kernel: ScaleKernel, inputs: _Inputs) -> None:
    # One expression: no name keeps the matrix alive during the backward pass.
    (kernel(inputs.x).to_dense() * inputs.cotangent).sum().backward()


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


def _memory_worker(options: dict) -> float:
    """Peak memory in this process; called by `peak_memory` in another."""
    kernel = KernelSpec(**options["spec"]).build(options["num_dims"])
    torch.set_num_threads(options["threads"])
    _training_step(kernel, _Inputs.draw(32, options["num_dims"], 0))
    kernel.zero_grad()
    inputs = _Inputs.draw(options["n"], options["num_dims"], 0)
    return peak_above_start(lambda: _training_step(kernel, inputs))


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
    peak = in_process(__name__, "_memory_worker", options, FREED_BLOCKS_GO_BACK)
    assert isinstance(peak, float)
    return peak


def _kept_pages_worker(options: dict) -> list[dict]:
    """Times where the heap keeps its pages; called by `_time_kept_pages` in another process."""
    torch.set_num_threads(options.pop("threads"))
    config = SpeedConfig(**options)
    specs = config.main_kernels
    records = _time_training(
        "kept-pages", specs, config.n, config, config.rounds, lambda name: None, fresh_pages=False
    )
    return [asdict(record) for record in records]


def _time_kept_pages(config: SpeedConfig, on_step: Callable[[str], None]) -> list[Record]:
    options = asdict(config) | {"threads": torch.get_num_threads()}
    settings = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    rows = in_process(__name__, "_kept_pages_worker", options, settings)
    assert isinstance(rows, list)
    on_step("kept pages")
    return [Record(**row) for row in rows]


def _memory_records(
    section: str, config: SpeedConfig, on_step: Callable[[str], None]
) -> list[Record]:
    jobs = config.sections[section]

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


def _measure(
    section: str, config: SpeedConfig, on_step: Callable[[str], None]
) -> Iterator[list[Record]]:
    """The measurements of a section, those of one interleaved run at a time."""
    if section.startswith("memory"):
        yield _memory_records(section, config, on_step)
    elif section == "batch":
        yield _time_batches(config, on_step)
    elif section == "kept-pages":
        yield _time_kept_pages(config, on_step)
    else:
        rounds = config.rounds if section == "main" else config.sweep_rounds
        sizes: dict[int, list[KernelSpec]] = {}
        for spec, n in config.sections[section]:
            sizes.setdefault(n, []).append(spec)
        for n, specs in sizes.items():
            yield _time_training(section, specs, n, config, rounds, on_step)


def _run(config: SpeedConfig, keys: Iterator[Key], tell: Callable[[str], None]) -> Iterator[Record]:
    """Whole sections, in which at least one measurement is missing."""
    missing = {section for section, *_ in keys}
    for section in config.sections:
        if section in missing:
            for records in _measure(section, config, tell):
                yield from records


def check_targets(records: Sequence[Record], n: int) -> list[Target]:
    """Compare with what the package promises.

    Args:
        records: Measurements of all sections, but for those of memory.
        n: The size at which memory is compared.

    Returns:
        Every target whose measurements are there.
    """
    found = {(r.section, r.kernel, r.n): r for r in records}
    batch = {r.kernel: r for r in records if r.section == "batch"}
    relu, bnn = deq_nngp("relu").label, infinite_width_bnn(3).label
    targets = []
    bounds = {
        relu: 1.0,
        deq_nngp("relu", 1.98).label: 1.1,
        DEQ_NTK.label: 2.0,
        deq_nngp("erf").label: 2.5,
    }
    bounds |= {deq_nngp(name).label: 6.0 for name in ("tanh", "sigmoid", "silu", "softplus", "elu")}
    bounds |= {spec.label: 3.0 for spec in DEKERS}
    for pages in ("main", "kept-pages"):
        there = {r.kernel: r for r in records if r.section == pages}
        where = {"main": "fresh pages", "kept-pages": "kept pages"}[pages]
        for label, bound in bounds.items():
            what = f"{label}: time / Matérn-5/2, {where}"
            targets.append(Target(what, bound, there[label].ratio))
        targets += _over_base(there, f"time, {where}", 1.5)
        quotient = there[relu].value / there[bnn].value
        targets.append(Target(f"{relu}: time / {bnn}, {where}", 0.3, quotient))
    for activation, bound in (("relu", 2.0), ("erf", 3.0)):
        label = deq_nngp(activation).label
        targets.append(Target(f"{label}: t-batch time / Matérn-5/2", bound, batch[label].ratio))
    targets += _over_base(batch, "t-batch time", 1.5)
    over = {r.kernel: r for r in records if r.section == "memory-base"}
    targets += _over_base(over, "peak memory", 1.3)
    memory = {relu: 0.5, DEQ_NTK.label: 2.0} | {spec.label: 2.0 for spec in DEKERS}
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


def _over_base(records: Mapping[str, Record], what: str, bound: float) -> list[Target]:
    """The largest ratio of the networks over a base kernel to that kernel alone."""
    targets = []
    for base in (MATERN.label, RBF.label):
        there = [spec.label for spec in OVER if spec.base == base and spec.label in records]
        if there and base in records:
            worst = max(records[label].value for label in there) / records[base].value
            targets.append(Target(f"the worst over {base}: {what} / {base}", bound, worst))
    return targets


def tables(config: SpeedConfig, records: Sequence[Record]) -> Iterator[Table | str]:
    """The tables and notes that the command prints.

    Args:
        config: The sizes.
        records: Their measurements.

    Yields:
        A table for each section, and the targets.
    """
    yield conditions()
    for section in dict.fromkeys(record.section for record in records):
        yield _section_table([record for record in records if record.section == section])
    rows = [
        [
            target.what,
            f"{target.bound:.2f}",
            f"{target.measured:.3f}",
            "met" if target.met else "**missed**",
        ]
        for target in check_targets(records, config.n)
    ]
    yield Table("Targets", ["ratio", "at most", "measured", ""], rows)


def _section_table(records: Sequence[Record]) -> Table:
    section, n = records[0].section, records[0].n
    ratio = "(ratio to Matérn-5/2)"
    grids = {
        "time-n": (f"Time in ms {ratio} against n", 1e3),
        "time-depth": (f"Time in ms {ratio} against depth, n = {n}", 1e3),
        "memory-n": (f"Peak memory in MiB {ratio} against n", 1.0),
        "memory-depth": (f"Peak memory in MiB {ratio} against depth, n = {n}", 1.0),
        "memory-w": (f"Peak memory in MiB {ratio} against w, n = {n}", 1.0),
        "memory-base": (f"Peak memory in MiB {ratio} over a base kernel", 1.0),
    }
    if section in grids:
        return _grid(records, *grids[section], by_depth=section.endswith("depth"))
    titles = {
        "main": f"Forward and backward, n = {n}",
        "kept-pages": f"The same where the heap keeps its pages, n = {n}",
        "batch": f"Acquisition: t-batch against {n} points, gradient for the test points",
    }
    rows = [
        [
            record.kernel,
            _digits(1e3 * record.value),
            f"{_digits(1e3 * record.low)} to {_digits(1e3 * record.high)}",
            f"{record.ratio:.2f}",
            str(record.rounds),
        ]
        for record in records
    ]
    columns = ["kernel", "ms", "quartiles", "/ Matérn-5/2", "rounds"]
    return Table(titles[section], columns, rows, section)


def _grid(records: Sequence[Record], title: str, scale: float, by_depth: bool) -> Table:
    """One row for each kernel, one column for each n or depth."""

    def column(record: Record) -> str:
        if not by_depth:
            return f"n = {record.n}"
        return "no depth" if record.depth is None else f"depth {record.depth}"

    columns = list(dict.fromkeys(map(column, records)))
    kernels: dict[str, dict[str, str]] = {}
    for record in records:
        name = record.family if by_depth else record.kernel
        cell = f"{_digits(scale * record.value)} ({record.ratio:.2f})"
        kernels.setdefault(name, {})[column(record)] = cell
    rows = [
        [kernel, *(cells.get(name, "") for name in columns)] for kernel, cells in kernels.items()
    ]
    return Table(title, ["kernel", *columns], rows, records[0].section)


def _digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


EXPERIMENT = Experiment(
    name="speed",
    configuration=SpeedConfig,
    row=Record,
    run=_run,
    tables=tables,
    figure=lambda config, records: draw(records, check_targets(records, config.n), conditions()),
    timing=True,
)
