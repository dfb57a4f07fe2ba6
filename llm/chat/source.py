"""What was named, a run or a folder in Hugging Face format -> where its model, adapter and tokenizer lie."""

from dataclasses import dataclass
from pathlib import Path

from llm.run import Run, Weights, find_folder, find_model_run, positions_of, weights_in, weights_of


@dataclass(frozen=True)
class Source:
    """A model that can be talked to, not loaded yet."""

    name: str  # what a person sees
    path: Path
    positions: int  # tokens that prompt and answer may take together
    run: Run | None  # whose files can be checked
    foreign: Weights | None = None  # of a folder that no run.json speaks for

    def weights(self) -> Weights:
        """Raises: DamagedError: a file of a run is missing or is not what it was."""
        if self.foreign is not None:
            return self.foreign
        assert self.run is not None
        return weights_of(self.run)


def find_source(outputs: str, named: str) -> Source:
    """The model of a run by its name or folder, or of any folder in Hugging Face format.

    Raises:
        ConfigError: there is none of that name, several, or it is no model.
        DamagedError: a file of a folder cannot be read.
    """
    if (folder := find_folder(named)) is not None:
        weights = weights_in(folder)
        return Source(str(folder), folder, weights.positions, None, weights)
    run = find_model_run(outputs, named, done_to_it="meant", key="")
    return Source(f"{run.stage}/{run.path.name}", run.path, positions_of(run), run)
