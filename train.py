"""Run one stage of the pipeline: python train.py stage=pretrain model=gpt2_tiny data=korean_law."""

from importlib import import_module

import hydra
from omegaconf import DictConfig

from llm.config import from_hydra, job_overrides, num_devices, run_hydra
from llm.errors import one_line_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    with one_line_errors():
        config = from_hydra(cfg)
        if num_devices(config) > 1:
            from llm.run.launch import is_launched, launch_ranks

            if not is_launched():
                launch_ranks(job_overrides(), devices=num_devices(config))
        stage = import_module(f"llm.stage.{config.stage}")  # a module of llm.stage, nothing else
        objective: float | None = stage.run(config).objective
    return objective


if __name__ == "__main__":
    run_hydra(main)
