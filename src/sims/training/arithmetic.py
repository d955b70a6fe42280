"""The arithmetic of training: which number format the network computes in, and what fp16 needs besides."""

from __future__ import annotations

from typing import Literal

import torch

from sims.denoiser import half_precision

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 natively: recent GPUs, and CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return False


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The half precision to compute in; None for float32. Errors: UserError for fp16 on a CPU."""
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    return half_precision(precision, device)


def loss_scaler(dtype: torch.dtype | None, device: torch.device) -> torch.amp.GradScaler:
    """Keeps small gradients from vanishing in fp16 (Micikevicius et al. 2018); does nothing in other formats."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
