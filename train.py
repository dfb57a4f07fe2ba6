"""Run one stage of the pipeline: python train.py stage=pretrain model=gpt2_tiny data=korean_law."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends an import, and is no error in it; run_hydra hears it

import hydra
from omegaconf import DictConfig

from llm.config import from_hydra, is_sweep, job_errors, job_overrides, run_hydra


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    with job_errors():
        config = from_hydra(cfg)
        if config.dry_run:
            from llm.dry_run import show

            show([config])
            return None
        from llm.logger import show_trial
        from llm.run import require_devices, stop_on_signal
        from llm.run.launch import in_group, make_by_ranks, needs_launch
        from llm.stage import run_stage

        if "trainer" in cfg:
            require_devices(config.trainer)
        with stop_on_signal(is_last=not is_sweep()), in_group():
            if "trainer" in cfg and needs_launch(config.trainer.devices):
                made = make_by_ranks(job_overrides(), devices=config.trainer.devices)
            else:
                made = run_stage(config)
            show_trial(config, made)
            objective: float | None = made.objective
    return objective


if __name__ == "__main__":
    run_hydra(main)
