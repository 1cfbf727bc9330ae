"""Feature maps for BoTorch's pathwise samples, registered when BoTorch is there.

BoTorch chooses a feature map by the class of a kernel, from a table that packages add to. This
package's maps are in :mod:`gp_deq.bayesopt.pathwise`, which needs BoTorch, and ``import gp_deq``
does not. So an entry that imports them on first use is added to the table: at once where BoTorch's
module has been imported, or else when it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from .kernels import NeuralKernel

_MODULE = "botorch.sampling.pathwise.features.generators"


def register_when_imported() -> None:
    """Registers the maps now, or when BoTorch's module is imported."""
    module = sys.modules.get(_MODULE)
    # BoTorch may be in the middle of its own import
    if module is not None and hasattr(module, "gen_kernel_features"):
        _register(module)
    else:
        sys.meta_path.insert(0, _Finder())


def _register(generators: ModuleType) -> None:
    def imported_on_first_use(kernel: NeuralKernel, **options: Any) -> Any:
        # this registers the maps of all classes, in place of this function too
        from .bayesopt import pathwise  # noqa: F401

        return generators.gen_kernel_features(kernel, **options)

    if (NeuralKernel,) not in generators.GenKernelFeatures.funcs:
        generators.GenKernelFeatures.add((NeuralKernel,), imported_on_first_use)


class _Finder(MetaPathFinder):
    """Finds the one module where the others do, and has it tell when it has been loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        # the others are asked without this one, which comes back in case the import fails
        sys.meta_path.remove(self)
        try:
            spec = find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(Loader):
    """Loads with the module's own loader, which it then leaves in its place."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        _register(module)
