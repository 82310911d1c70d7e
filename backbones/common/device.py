"""Which device a run uses, and in which precision."""

import functools
import shutil
from typing import Literal

import torch
from torch import Tensor

from backbones.common.errors import UserError

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
ResolvedPrecision = Literal["fp32", "tf32", "bf16", "fp16"]


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device; raises `UserError` where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: this machine has {torch.cuda.device_count()} CUDA GPUs")
    return device


def autocast(device: torch.device, precision: ResolvedPrecision) -> torch.autocast:
    """What runs convolutions in `precision` and leaves the weights in fp32; in fp32 nothing."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision in ("bf16", "fp16"))


def set_tf32(allowed: bool) -> None:
    """Whether NVIDIA GPUs may round the factors of fp32 products to TF32's 10 bits.

    PyTorch by itself allows it in convolutions and not in matrix products, so that `fp32` would
    mean one thing here and another there. It holds for the whole process.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def resolve_precision(name: Precision, device: torch.device) -> ResolvedPrecision:
    """`auto` as `bf16` where the device computes in it natively, else `fp32`.

    A CPU without bf16 instructions emulates them, several times slower than fp32. Raises
    `UserError` for `tf32` on a CPU.
    """
    if name == "tf32" and device.type != "cuda":
        raise UserError(f"precision tf32 is for NVIDIA GPUs, not {device}: take fp32")
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bf16" if native else "fp32"


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a GPU copies it while the processor goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@functools.cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers `float32 [N]` on a device, copied there once. Not to be changed."""
    with torch.inference_mode(False):  # they may be needed in training later
        return torch.tensor(values, dtype=torch.float32, device=device)


def require_compiler(key: str) -> None:
    """Raise `UserError` where the setting `key` needs a C++ compiler, for torch.compile on a CPU,
    and there is none."""
    if not (shutil.which("g++") or shutil.which("clang")):
        raise UserError(f"{key} on a CPU needs a C++ compiler: install g++, or leave it out")
