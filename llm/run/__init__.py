"""Runs: a plan and the work that it takes -> a folder under outputs/ that is found again, resumed, or reused.

outputs/<stage>/<name>-<key>/    key: first 8 hex digits of the hash of what determines the run
  run.json                       status, parents, commit, versions, command, times, results
  config.yaml                    the composed config
  log.txt  metrics.jsonl         and what the stage makes
"""

from llm.environment import ask_for_another_launch, is_on_slurm, launch_id, of_srun, process_rank
from llm.run.announcing import SweepJob, sweep_job
from llm.run.console import console, log, log_to, start_logging
from llm.run.devices import require_devices, with_precision
from llm.run.earlier import forget_earlier
from llm.run.files import (
    TEMPORARY,
    clear_temporaries,
    composed,
    digest_of,
    sha256_of,
    whole_files,
    whole_folder,
    write_json,
    write_text,
)
from llm.run.identity import Plan, differences
from llm.run.making import NOT_MINE, Outcome, find, make
from llm.run.manifest import check_files, check_metrics, metrics_of
from llm.run.metrics import METRICS, SAMPLES, MetricsLog, history, read_metrics
from llm.run.models import (
    CONFIG,
    TOKENIZER,
    Model,
    bad_weights,
    base_of,
    digest_in,
    find_model,
    folder_of,
    is_foreign,
    model_of,
    opening,
    own_folder,
    positions_in,
    read_json,
    weight_files,
)
from llm.run.precision import settled_trainer
from llm.run.record import recorded_config
from llm.run.runs import (
    Run,
    candidates,
    damaged_records,
    find_run,
    find_runs,
    load,
    read_record,
    write_record,
)
from llm.run.signals import SIGNALS, on_signal, stop_on_signal

__all__ = [
    "CONFIG",
    "METRICS",
    "NOT_MINE",
    "SAMPLES",
    "SIGNALS",
    "TEMPORARY",
    "TOKENIZER",
    "MetricsLog",
    "Model",
    "Outcome",
    "Plan",
    "Run",
    "SweepJob",
    "ask_for_another_launch",
    "bad_weights",
    "base_of",
    "candidates",
    "check_files",
    "check_metrics",
    "clear_temporaries",
    "composed",
    "console",
    "damaged_records",
    "differences",
    "digest_in",
    "digest_of",
    "find",
    "find_model",
    "find_run",
    "find_runs",
    "folder_of",
    "forget_earlier",
    "history",
    "is_foreign",
    "is_on_slurm",
    "launch_id",
    "load",
    "log",
    "log_to",
    "make",
    "metrics_of",
    "model_of",
    "of_srun",
    "on_signal",
    "opening",
    "own_folder",
    "positions_in",
    "process_rank",
    "read_json",
    "read_metrics",
    "read_record",
    "recorded_config",
    "require_devices",
    "settled_trainer",
    "sha256_of",
    "start_logging",
    "stop_on_signal",
    "sweep_job",
    "weight_files",
    "whole_files",
    "whole_folder",
    "with_precision",
    "write_json",
    "write_record",
    "write_text",
]
