"""The device and the precision, chosen by the features of the hardware, never by a timing."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch

from flywheel.models import ModelError

BFLOAT16_CPU_FEATURES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # x86 and ARM
# Values of ONEDNN_MAX_CPU_ISA with which oneDNN, which computes torch's bfloat16, emulates it ten times slower.
ONEDNN_EMULATES_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")


def pick(cuda: bool = True) -> torch.device:
    """Return the first visible CUDA device (unless `cuda` is false), else MPS, else the CPU."""
    if cuda and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has hardware for bfloat16, and uses it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in ONEDNN_EMULATES_BFLOAT16:
        features = torch.cpu.get_capabilities()
        return any(features.get(name, False) for name in BFLOAT16_CPU_FEATURES)
    return False


def free_bytes(device: torch.device) -> int:
    """Return the free memory of an accelerator, 0 for the CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return 0


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return float32 or bfloat16, choosing for `auto`. Raises ModelError for bfloat16 on MPS."""
    if precision == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    if precision == "bfloat16" and device.type == "mps":
        raise ModelError("recipe.precision: bfloat16 does not work on this device; use auto or float32")
    return precision


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a network computes in a resolved precision."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
