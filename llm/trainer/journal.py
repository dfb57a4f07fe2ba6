"""What a run writes down as it goes: metrics.jsonl and samples.jsonl, which the logger shows."""

from pathlib import Path
from typing import Any

from llm.logger import RunLogger
from llm.run import MetricsLog, process_rank


class Journal:
    """Writes on rank zero; on the other ranks it only looks as if."""

    def __init__(self, folder: Path, logger: RunLogger) -> None:
        self._folder, self._logger = folder, logger
        self._metrics: MetricsLog | None = None
        self._samples: MetricsLog | None = None

    def open(self, sizes: dict[str, int] | None = None) -> None:
        """Begin, or go on after `sizes` bytes of each file: what came after the checkpoint is written anew."""
        if process_rank() == 0 and self._metrics is None:
            sizes = sizes or {"metrics": 0, "samples": 0}
            self._metrics = MetricsLog(self._folder / "metrics.jsonl", size=sizes["metrics"])
            self._samples = MetricsLog(self._folder / "samples.jsonl", size=sizes["samples"])
            self._logger.follow()

    def write(self, record: dict[str, Any]) -> None:
        """Write one record of metrics."""
        if self._metrics:
            self._metrics.append(record)

    def write_samples(self, samples: list[dict[str, Any]]) -> None:
        """Write texts that the model made, each with its step and prompt; the record of their validation comes next."""
        if self._samples:
            for sample in samples:
                self._samples.append(sample)

    def sizes(self) -> dict[str, int]:
        """Bytes written so far: what a checkpoint keeps."""
        if self._metrics and self._samples:
            return {"metrics": self._metrics.size, "samples": self._samples.size}
        return {"metrics": 0, "samples": 0}

    def close(self) -> None:
        for file in (self._metrics, self._samples):
            if file:
                file.close()
