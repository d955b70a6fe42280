"""Adam, with moments of 32 bits or of 8."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sims.errors import UserError
from sims.training.options import TrainOptions


def make_adam(parameters: Sequence[nn.Parameter], options: TrainOptions) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), or with 8-bit moments (Dettmers et al. 2022, arXiv 2110.02861).

    Errors: UserError for 8 bits without the package bitsandbytes.
    """
    settings: dict[str, Any] = {"lr": options.learning_rate, "betas": (0.9, options.beta2)}
    if options.optimizer == "adam8bit":
        bitsandbytes = _bitsandbytes()
        made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
            parameters, **settings, eps=1e-8, weight_decay=options.weight_decay
        )
        return made
    return torch.optim.Adam(
        parameters, **settings, fused=True, weight_decay=options.weight_decay,
        decoupled_weight_decay=options.weight_decay > 0,
    )  # fmt: skip


def is_8bit(optimizer: torch.optim.Optimizer) -> bool:
    return not isinstance(optimizer, torch.optim.Adam)


def _bitsandbytes() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that an optimizer has no use for
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"train.optimizer adam8bit needs the package bitsandbytes ({error}): pip install 'sims-diffusion[8bit]', "
            "or choose adam"
        ) from error
    return bitsandbytes
