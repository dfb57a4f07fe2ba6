"""The devices that a run asks for -> a refusal, before any work, of what is not there; and its precision."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from llm.config.training import Accelerator, Precision, TrainerConfig
from llm.environment import is_launched, launch_id, launch_size, process_rank
from llm.errors import ConfigError
from llm.run.console import log, start_logging
from llm.run.making import Plan, begins_anew, place_of, record_in
from llm.run.owner import wait_for_rank_zero

CPU_FLAGS = {"avx512_bf16", "amx_bf16"}  # 2.4 times fp32 on an AMD EPYC with the first; a CPU without is slower in bf16
CPU_INFO = Path("/proc/cpuinfo")
LEAST_FOR_BF16 = 8  # compute capability: Ampere. Older GPUs make bf16 of other instructions, slower than fp32


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
    if config.precision is not Precision.auto:
        if config.precision is Precision.bf16 and _is_on_cpu(config) and not cpu_flags():
            log.warning("trainer.precision=bf16: this CPU has no instructions for it, so it is slower than fp32")
        return config
    fast, reason = fast_precision(config)
    if reason:
        log.info("trainer.precision=auto is bf16 here: %s. It is part of what the run is", reason)
    return replace(config, precision=fast)


def resolve_precision(plan: Plan) -> TrainerConfig:
    """The plan's trainer, with the precision that the run was begun in on whatever machine; of a new run, what is fast.

    Rank zero decides, and the others do as it has recorded: their devices may be of another kind.
    """
    start_logging()
    trainer = _trainer(plan)
    if trainer.precision is not Precision.auto:
        return with_precision(trainer)
    settled = [_with_trainer(plan, replace(trainer, precision=kind)) for kind in (Precision.fp32, Precision.bf16)]
    if process_rank() > 0:
        folders = [place_of(each) for each in settled]
        return _trainer(wait_for_rank_zero(folders, lambda: next(filter(_is_rank_zeros, settled), None)))
    fast = fast_precision(trainer)[0]
    begun = [each for each in settled if _may_go_on(each)]
    if not begun:
        return with_precision(trainer)
    chosen = max(begun, key=lambda each: (_record(each)["status"] == "done", _trainer(each).precision is fast))
    if (precision := _trainer(chosen).precision) is not fast:
        log.info("trainer.precision=auto is %s, which %s was begun in", precision.name, place_of(chosen))
    return with_precision(_trainer(chosen))


def fast_precision(config: TrainerConfig) -> tuple[Precision, str | None]:
    """(what is fast on these devices, why they are fast in bf16)."""
    if _is_on_cpu(config):
        reason = f"the CPU has {', '.join(flags)}" if (flags := cpu_flags()) else None
    else:
        reason = "all GPUs have it" if _gpus_have_bf16(config.devices) else None
    return Precision.bf16 if reason else Precision.fp32, reason


def cpu_flags() -> list[str]:
    """The instructions for products in bf16 that this CPU has, by Linux's names; none where that is not known."""
    try:
        lines = CPU_INFO.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    words = next((line.split() for line in lines if line.startswith("flags")), [])
    return sorted(CPU_FLAGS.intersection(words))


def _is_rank_zeros(plan: Plan) -> bool:
    """Whether the run is that which rank zero makes, or finds."""
    record = _record(plan)
    return record.get("launch") == launch_id() or (record.get("status") == "done" and _may_go_on(plan))


def _may_go_on(plan: Plan) -> bool:
    """Whether there is a run that is not to be begun anew."""
    return bool(_record(plan)) and not begins_anew(plan, place_of(plan))


def _record(plan: Plan) -> dict[str, Any]:
    return record_in(place_of(plan), plan) or {}


def _trainer(plan: Plan) -> TrainerConfig:
    config: Any = plan.config  # of a stage that trains
    trainer: TrainerConfig = config.trainer
    return trainer


def _with_trainer(plan: Plan, trainer: TrainerConfig) -> Plan:
    config: Any = plan.config
    return replace(plan, config=replace(config, trainer=trainer))


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
    if size is not None and size > 1 and launch_id() is None:
        raise ConfigError("this launch has no id of its own. Add --standalone or --rdzv-id to torch.distributed.run.")


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
