"""A run's folder -> its W&B run, made or completed after the run itself: for a sync, and for an agent's trial."""

from pathlib import Path

from llm.config import LoggerConfig, StageConfig, WandbMode
from llm.errors import DamagedError
from llm.logger.opening import open_logger
from llm.logger.segments import segments_of
from llm.logger.trial import agents_trial
from llm.run import METRICS, SAMPLES, Run, log, metrics_of, process_rank
from llm.run.metrics import Record


def replay(config: LoggerConfig, run: Run, *, outputs: Path) -> None:
    """Log what a run's files have and W&B has not got, as a start that goes on with the run would."""
    records, samples = _undamaged(run, METRICS), _undamaged(run, SAMPLES)
    with open_logger(config, run, outputs=outputs) as logger:
        logger.log_samples(samples)  # none, where W&B has the first record
        logger.go_on(records)
        if run.is_done:
            logger.summarize(run.results)


def _undamaged(run: Run, name: str) -> list[Record]:
    try:
        return metrics_of(run, name)
    except DamagedError as error:
        log.warning("W&B is not given what %s has: %s", name, error)
        return []


def show_trial(stage: StageConfig, run: Run) -> None:
    """Give an agent's trial the metrics of a run that was made before, or by another trial: a sweep waits for them.

    Does nothing where this process made the run, or is no agent's.
    """
    trial, config, outputs = agents_trial(), getattr(stage, "logger", None), Path(stage.outputs)
    if trial is None or config is None or config.mode is WandbMode.disabled or process_rank() > 0:
        return
    if not segments_of(outputs, trial.run_id):
        log.info("the trial %s of wandb's agent is this finished run: its metrics are logged anew", trial.run_id)
        replay(config, run, outputs=outputs)
