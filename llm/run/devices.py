"""What this machine has for a run: devices, or a refusal; the precision, the memory in use, the peak of products."""

import os
import re
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.config.training import Accelerator, Precision, TrainerConfig
from llm.environment import is_launched, launch_size
from llm.errors import ConfigError
from llm.run.console import log

if TYPE_CHECKING:
    import torch

CPU_FLAGS = {"avx512_bf16", "amx_bf16"}  # 2.4 times fp32 on an AMD EPYC with the first; a CPU without is slower in bf16
CPU_INFO = Path("/proc/cpuinfo")
LEAST_FOR_BF16 = 8  # compute capability: Ampere. Older GPUs make bf16 of other instructions, slower than fp32
# Dense peaks in FLOP/s by NVIDIA's data sheets, without sparsity: (bf16 on tensor cores with fp32 sums, fp32 without
# tensor cores). The first name that the device's holds as whole words is taken: variants stand before their family.
# Each figure was found in a published table, 2026-11-24; a GPU of which one was not is left out, and is measured.
PEAKS = {
    "GB200": (2500e12, 80e12),  # one of its two GPUs: https://hmc-tech.com/gpu/nvidia-b200-vs-nvidia-gb200
    "B200": (2250e12, 75e12),  # the same table
    "H200": (989e12, 67e12),  # https://itkb.uw.cz/2026/06/nvidia-h200-vs-b300-precisions-cores.html
    "H100 PCIe": (756e12, 51e12),  # https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html
    "H100": (989e12, 67e12),  # the same table
    "A100": (312e12, 19.5e12),  # https://hmc-tech.com/gpu/nvidia-a100-vs-nvidia-a40
    "A40": (149.7e12, 37.4e12),  # the same table
    "L40S": (362e12, 91.6e12),  # https://www.mullet.se/product.html?product_id=355414
    "L40": (181e12, 90.5e12),  # the same table
    "RTX 4090": (165.2e12, 82.6e12),  # https://waredb.com/processor/nvidia-geforce-rtx-4090
    "RTX A6000": (154.8e12, 38.7e12),  # https://llmperf.net/categories/gpu/Nvidia-A6000-GPUs
    "T4": (65e12, 8.1e12),  # https://hmc-tech.com/gpu/nvidia-t4-vs-nvidia-v100-sxm; in fp16, for it has no bf16
    "V100-SXM2": (125e12, 15.7e12),  # the same table; likewise
}
OTHER_CHIPS = ("Laptop", "MIG", "4090 D", "NVL")  # in a listed name's clothes
# Sides of the square matrices that measure an unlisted device, and how many products are timed as one: on a GPU small
# ones would measure how fast the host starts them.
PROBE_SIZES = {"cpu": 1024, "cuda": 4096}
PROBE_PRODUCTS = {"cpu": 1, "cuda": 8}
PROBE_TRIES = 5


def require_devices(config: TrainerConfig) -> None:
    """Look only as far as the config asks: torch takes seconds to load.

    Raises:
        ConfigError: GPUs that are not there, a precision that they lack, or a launch of another size.
    """
    _require_launch(config)
    if config.accelerator is Accelerator.cpu:
        return
    if config.accelerator is Accelerator.gpu or config.devices > 1 or config.precision is Precision.bf16:
        _require_gpus(config)


def with_precision(config: TrainerConfig) -> TrainerConfig:
    """The config with the precision that trainer.precision=auto is on these devices; it is said when it is bf16."""
    if config.precision is Precision.fp32:
        return config
    if _is_on_cpu(config):
        is_fast, reason = bool(flags := _cpu_flags()), f"the CPU has {', '.join(flags)}"
    else:
        is_fast, reason = _gpus_have_bf16(config.devices), "all GPUs have it"
    if config.precision is Precision.bf16:
        if not is_fast:
            log.warning("trainer.precision=bf16: this CPU has no instructions for it, so it is slower than fp32")
        return config
    if is_fast:
        log.info("trainer.precision=auto is bf16 here: %s", reason)
    return replace(config, precision=Precision.bf16 if is_fast else Precision.fp32)


def as_begun(config: Any, record: dict[str, Any]) -> Any:
    """A stage's config with the precision that its run was begun in, on whatever machine that was."""
    if not (begun := record.get("precision")):
        return config
    return replace(config, trainer=replace(config.trainer, precision=Precision[begun]))


def _cpu_flags() -> list[str]:
    """The instructions for products in bf16 that this CPU has, by Linux's names; none where that is not known."""
    try:
        lines = CPU_INFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    words = next((line.split() for line in lines if line.startswith("flags")), [])
    return sorted(CPU_FLAGS.intersection(words))


def _is_on_cpu(config: TrainerConfig) -> bool:
    if config.accelerator is not Accelerator.auto:
        return config.accelerator is Accelerator.cpu
    import torch

    return not torch.cuda.device_count()


def _gpus_have_bf16(number: int) -> bool:
    """Of those that are there: a dry run may be about GPUs of another machine."""
    import torch

    present = min(number, torch.cuda.device_count())
    return all(torch.cuda.get_device_capability(index)[0] >= LEAST_FOR_BF16 for index in range(present))


def _require_launch(config: TrainerConfig) -> None:
    size = launch_size()
    if not is_launched() and config.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={config.num_nodes}, but this is one process on one machine. Start it on every machine: "
            f"srun --nodes={config.num_nodes} --ntasks-per-node={config.devices} python train.py ..., or on each "
            f"python -m torch.distributed.run --nnodes={config.num_nodes} --nproc-per-node={config.devices} "
            "--rdzv-backend=c10d --rdzv-endpoint=<one of them>:29500 --rdzv-id=<any> train.py ..."
        )
    if size is not None and size != config.world_size:
        raise ConfigError(
            f"this launch has {size} processes, but trainer.devices={config.devices} on trainer.num_nodes="
            f"{config.num_nodes} takes {config.world_size}. Make them the same."
        )


def _require_gpus(config: TrainerConfig) -> None:
    import torch

    present = torch.cuda.device_count()
    if config.accelerator is Accelerator.auto and not present:
        return  # a CPU it is, with as many processes as are asked for
    if config.devices > present:
        raise ConfigError(
            f"trainer.accelerator={config.accelerator.value} with trainer.devices={config.devices}, but this machine "
            f"has {present} GPUs that torch can use. Choose trainer=cpu, or fewer devices."
        )
    for index in range(config.devices):
        name, (major, _) = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        if config.precision is Precision.bf16 and major < LEAST_FOR_BF16:
            raise ConfigError(
                f"trainer.precision=bf16, but {name} (GPU {index}) has no bf16 arithmetic. Set trainer.precision=fp32."
            )


def peak_memory_bytes() -> int:
    """The most memory that this process held so far (resident)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def resident_bytes() -> int:
    """What this process has in RAM now; where the system does not say, the most that it had."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_memory_bytes()
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


# The peak that MFU is measured against


def peak_flops(device: "torch.device", precision: Precision | None = None) -> tuple[float, str]:
    """(FLOP/s, where the figure is from): the data sheet's for a GPU that is listed, else measured.

    Of matrix products in bf16 or in fp32; None: a listed GPU's in bf16, another device's in fp32.
    """
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if (peaks := listed_peaks(name)) is not None:
            is_fp32 = precision is Precision.fp32
            return peaks[is_fp32], f"data sheet of {name}, dense {'fp32' if is_fp32 else 'bf16'}"
    dtype = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    words = "bf16" if precision is Precision.bf16 else "fp32"
    size = PROBE_SIZES.get(device.type, PROBE_SIZES["cpu"])
    return _measured_flops(device, dtype, size=size), f"measured {device.type}, {size} x {size} product in {words}"


def listed_peaks(name: str) -> tuple[float, float] | None:
    """The peaks of a GPU by the name that its driver gives it; None for one that is not listed."""
    if any(other in name for other in OTHER_CHIPS):
        return None
    return next((peaks for listed, peaks in PEAKS.items() if re.search(rf"\b{listed}\b", name)), None)


def _measured_flops(device: "torch.device", dtype: "torch.dtype", *, size: int) -> float:
    import torch

    generator, products = torch.Generator().manual_seed(0), PROBE_PRODUCTS.get(device.type, 1)
    matrix = torch.randn(size, size, generator=generator).to(device, dtype)
    best = float("inf")
    for _ in range(PROBE_TRIES):
        started = time.perf_counter()
        for _ in range(products):
            product = matrix @ matrix
        float(product[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 * products / best
