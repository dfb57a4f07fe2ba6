"""Run one stage of the pipeline: python train.py stage=pretrain model=gpt2_tiny data=korean_law."""

from llm.errors import one_line_errors

with one_line_errors():  # Ctrl-C ends what loads here in one line, too
    from llm.config.compose import Job, run_command


def run(job: Job) -> float | None:
    """What a search minimises, of the run that a job finds or makes."""
    if job.config.dry_run:
        from llm.dry_run.table import show

        show([job.config])
        return None
    from llm.logger.live import show_trial
    from llm.run.devices import require_devices
    from llm.run.launch import in_group, make_by_ranks, needs_launch, reporting, stop_on_signal
    from llm.stage import run_stage

    trainer = getattr(job.config, "trainer", None)
    with reporting() as report_done, stop_on_signal(is_last=job.is_alone), in_group():
        if trainer:
            require_devices(trainer)
        if trainer and needs_launch(trainer.devices):
            made = make_by_ranks(job.overrides, devices=trainer.devices)
        else:
            made = run_stage(job.config)
        show_trial(job.config, made)
        report_done(made)
    return made.objective


if __name__ == "__main__":
    with one_line_errors():
        from llm.run.console import start_logging

        start_logging()
        run_command(run)
