"""Make a diffusion model better with nothing but its own samples.

    import sims
    model = sims.load("runs/digits/improved")
    x = model.sample(seeds=range(16))  # (16, 1, 8, 8) in [-1, 1]
    summary = sims.improve(run="runs/mine", data="my/images", rounds=2)

Names are imported when they are first used: ``import sims`` itself is quick and loads no library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sims.api import compare, evaluate, improve, load_data, loop, pollution, shift, synthesize, train
    from sims.errors import UserError
    from sims.experiments.options import ImproveOptions
    from sims.model import Model, load
    from sims.sampling import SamplerOptions
    from sims.training.posthoc import reconstruct

__all__ = [
    "ImproveOptions",
    "Model",
    "SamplerOptions",
    "UserError",
    "__version__",
    "compare",
    "evaluate",
    "improve",
    "load",
    "load_data",
    "loop",
    "pollution",
    "reconstruct",
    "shift",
    "synthesize",
    "train",
]

__version__: str

_HOMES = {
    "ImproveOptions": "sims.experiments.options",
    "Model": "sims.model",
    "SamplerOptions": "sims.sampling",
    "UserError": "sims.errors",
    "compare": "sims.api",
    "evaluate": "sims.api",
    "improve": "sims.api",
    "load": "sims.model",
    "load_data": "sims.api",
    "loop": "sims.api",
    "pollution": "sims.api",
    "reconstruct": "sims.training.posthoc",
    "shift": "sims.api",
    "synthesize": "sims.api",
    "train": "sims.api",
}

if not TYPE_CHECKING:  # type checkers see the imports above, and flag names that are not there

    def __getattr__(name: str) -> Any:
        import importlib
        from importlib.metadata import PackageNotFoundError, version

        if name == "__version__":
            try:
                return version("sims-diffusion")
            except PackageNotFoundError:  # run from a source tree
                return "unknown"
        if name not in _HOMES:
            raise AttributeError(f"module 'sims' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
