"""Classifiers that users bring: a TorchScript file, or a function of theirs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sims.config import to_dict
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments.shift.attributes import Classifier, Labelled, Outputs, measured
from sims.files import digest, digest_file
from sims.metrics.custom import load_script, to_8_bit
from sims.metrics.extractors import hash_tensors
from sims.user_code import named_function


def torchscript(path: Path | str, data: Dataset, labelled: Labelled, device: torch.device | str = "cpu") -> Classifier:
    """A user's TorchScript file, its errors measured on labelled data, on which it should not have been trained.

    It maps images (B, C, H, W) in model space, or pixels uint8 where the path ends in :uint8, to logits (B, K), to
    one logit of the second of two values, or to values (B,). Running it runs what it holds: trust its source.
    """
    file = Path(str(path).removesuffix(":uint8"))
    if not file.is_file():
        raise UserError(f"no classifier {file}: check the path")
    weights, script, bytes_ = digest_file(file), load_script(file, torch.device(device)), str(path).endswith(":uint8")
    key = digest("torchscript", weights, bytes_, to_dict(labelled[0]))[:16]
    return _given(lambda x: script(to_8_bit(x) if bytes_ else x), file.name, key, data, labelled, device)


def from_callable(
    function: str | Outputs, data: Dataset, labelled: Labelled, device: torch.device | str = "cpu"
) -> Classifier:
    """A user's "module:function" or "file.py:function" (or the function itself), with inputs and outputs as above.

    Its identity is its file's content and, of a torch module, its weights.
    """
    name = function if isinstance(function, str) else getattr(function, "__qualname__", type(function).__qualname__)
    call = named_function(function, "classifier") if isinstance(function, str) else function
    state: dict[str, Tensor] = {}
    if isinstance(call, nn.Module):
        call = call.to(device).eval().requires_grad_(False)
        state = {key: value.float().cpu() for key, value in call.state_dict().items()}
    try:
        source = inspect.getsourcefile(inspect.unwrap(call) if inspect.isroutine(call) else type(call))
    except TypeError:  # built in
        source = None
    own = name
    if isinstance(function, str) and function.rpartition(":")[0].endswith(".py"):
        source, _, own = function.rpartition(":")  # wherever it lies
    content = digest_file(source) if source and Path(source).is_file() else ""
    key = digest("callable", own, content, hash_tensors(state, {}), to_dict(labelled[0]))[:16]
    return _given(call, name, key, data, labelled, device)


def _given(
    function: Callable[[Tensor], Any], name: str, key: str, data: Dataset, labelled: Labelled, device: Any
) -> Classifier:
    attribute, labels = labelled

    def outputs(x: Tensor) -> Tensor:
        try:
            found = function(x.float())
        except Exception as error:  # a user's code may raise anything
            last = str(error).strip().rsplit("\n", 1)[-1]
            raise UserError(
                f"the classifier {name} does not take images of shape {tuple(x.shape[1:])} ({last}): give one that was "
                "made for these images, or add or remove :uint8"
            ) from error
        return _normalized(found, len(x), len(attribute.values), name)

    return measured(attribute, key, outputs, [(data, labels)], device)


def _normalized(found: Any, count: int, num: int, name: str) -> Tensor:
    """What a user's classifier made of ``count`` images as log-probabilities (count, num) or values (count,) int64."""
    if isinstance(found, Tensor) and found.is_floating_point() and bool(found.isfinite().all()):
        if found.shape == (count, num):
            return functional.log_softmax(found.float(), dim=1)
        if num == 2 and found.shape in ((count, 1), (count,)):
            return functional.logsigmoid(torch.stack([-found.reshape(-1), found.reshape(-1)], dim=1).float())
    elif isinstance(found, Tensor) and found.shape == (count,) and not found.is_floating_point():
        if int(found.min()) >= 0 and int(found.max()) < num:
            return found.long()
        raise UserError(f"the classifier {name} gives the value {int(found.max())}: the attribute has 0 to {num - 1}")
    what = f"{tuple(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
    raise UserError(
        f"the classifier {name} makes {what} of {count} images: it must give finite logits ({count}, {num}), or whole "
        f"values ({count},)"
    )
