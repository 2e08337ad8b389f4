"""Which torch device a name means on this machine, how many threads torch uses, and how exact float32 is."""

from __future__ import annotations

import torch

from pancrafter.errors import PancrafterError
from pancrafter.heap import keep_freed_memory


class DeviceError(PancrafterError):
    """The wanted device is not there, or its memory is full."""

    kind = "system"


def resolve_device(name: str) -> str:
    """A device that works here: ``auto`` is CUDA where there is one, else the CPU; other names are tried.

    Raises:
        DeviceError: torch does not know the device, or this machine does not have it.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as err:
        said = (str(err) or type(err).__name__).splitlines()[0]
        raise DeviceError(f"device {name!r} cannot be used here ({said}); expected auto, cpu, cuda or cuda:N") from err
    return name


def free_bytes(device: str) -> int:
    """Memory of a CUDA device that this process can have: what nobody has, and what torch keeps for reuse."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that a device's memory is full; what it says for cuBLAS and cuDNN has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "STATUS_ALLOC_FAILED" in str(error)


def use_full_float32() -> None:
    """Let this process convolve float32 in float32 on CUDA too: by default cuDNN rounds factors to TF32's 10 bits."""
    torch.backends.cudnn.allow_tf32 = False


def use_threads(threads: int | None) -> None:
    """Prepare this process for networks: how many threads one uses (None: as torch chooses), and memory reuse."""
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()
