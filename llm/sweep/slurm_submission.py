"""What a driver asked of Slurm for a job, kept in the job's folder: slurm.json, which the driver alone writes."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llm.errors import DamagedError
from llm.run.files import write_json


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One submission of a job, alone or in an array."""

    token: str  # of the whole array; in Slurm's comment too, so that one whose driver died at it is found
    index: int | None  # in the array; None: alone
    attempts: int  # in the ledger, before it
    submitted_at: str
    id: str | None = None  # Slurm's; None: sbatch has not answered yet
    is_to_stop: bool = False  # save, end, and do not come back

    def with_index(self, number: str) -> str:
        """The id of this job in an array whose id, or whose own, is `number`."""
        return number if self.index is None else f"{number}_{self.index}"


def read_submission(folder: Path) -> Submission | None:
    """The last one of a job; None of a job that was never submitted.

    Raises:
        DamagedError: its file cannot be read.
    """
    path = folder / "slurm.json"
    try:
        return Submission(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DamagedError(
            f"{path} cannot be read ({error}). See with squeue that no job of it is left, and remove it."
        ) from None


def write_submission(folder: Path, submission: Submission) -> None:
    write_json(folder / "slurm.json", asdict(submission))
