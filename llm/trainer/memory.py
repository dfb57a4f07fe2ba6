"""How much memory training holds (a GPU's tensors at the most, a CPU's process in RAM), and whether any is left."""

import gc
import os
from pathlib import Path

import torch


def memory_in_use(device: torch.device) -> int:
    """Bytes. On a GPU the peak of torch's allocator so far, which the host counts: nothing waits for the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_bytes()


def resident_bytes() -> int:
    """What this process has in RAM now; where the system does not say, the most that it had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    from llm.tokenizer import peak_memory_bytes

    return peak_memory_bytes()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left to give."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
