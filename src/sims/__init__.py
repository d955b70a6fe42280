"""Make a diffusion model better with nothing but its own samples.

    import sims
    model = sims.load("runs/digits/improved")
    x = model.sample(seeds=range(16))  # (16, 1, 8, 8) in [-1, 1]
    result = sims.improve(run="runs/mine", data="my/images", rounds=2)

Names are imported when they are first used: ``import sims`` itself is quick and loads no library.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sims import interpolants, metrics
    from sims.api import compare, evaluate, improve, load_data, loop, pollution, shift, synthesize
    from sims.data.dataset import Dataset
    from sims.denoiser import Denoiser, as_denoiser
    from sims.errors import UserError
    from sims.experiments.options import ImproveOptions
    from sims.fitting import fine_tune, train
    from sims.guidance import CacheRule, Extrapolate
    from sims.interop.opening import load
    from sims.interop.wrapping import wrap
    from sims.model import Model
    from sims.sampling import SOLVERS, SamplerOptions, SamplingStep, edm_sigmas, nfe, sample, sample_seeds
    from sims.training.posthoc import reconstruct

if "OMP_WAIT_POLICY" not in os.environ:  # before torch begins: threads that wait for others give the processor away,
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # or two jobs on one machine take each other's for nothing

__all__ = [
    "SOLVERS",
    "CacheRule",
    "Dataset",
    "Denoiser",
    "Extrapolate",
    "ImproveOptions",
    "Model",
    "SamplerOptions",
    "SamplingStep",
    "UserError",
    "__version__",
    "as_denoiser",
    "compare",
    "edm_sigmas",
    "evaluate",
    "fine_tune",
    "improve",
    "interpolants",
    "load",
    "load_data",
    "loop",
    "metrics",
    "nfe",
    "pollution",
    "reconstruct",
    "sample",
    "sample_seeds",
    "shift",
    "synthesize",
    "train",
    "wrap",
]

__version__: str

_HOMES = {
    "sims.api": "compare evaluate improve load_data loop pollution shift synthesize",
    "sims.data.dataset": "Dataset",
    "sims.denoiser": "Denoiser as_denoiser",
    "sims.errors": "UserError",
    "sims.experiments.options": "ImproveOptions",
    "sims.fitting": "fine_tune train",
    "sims.guidance": "CacheRule Extrapolate",
    "sims.interop.opening": "load",
    "sims.interop.wrapping": "wrap",
    "sims.model": "Model",
    "sims.sampling": "SOLVERS SamplerOptions SamplingStep edm_sigmas nfe sample sample_seeds",
    "sims.training.posthoc": "reconstruct",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}


if not TYPE_CHECKING:  # type checkers see the imports above, and flag names that are not there

    def __getattr__(name: str) -> Any:
        import importlib
        from importlib.metadata import PackageNotFoundError, version

        if name == "__version__":
            try:
                return version("sims-diffusion")
            except PackageNotFoundError:  # run from a source tree
                return "unknown"
        if name in ("interpolants", "metrics"):
            return importlib.import_module(f"sims.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'sims' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOME[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
