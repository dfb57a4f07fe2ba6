"""Runs, by name or folder -> whether every file that they and their parents left is still what it was."""

import argparse

from llm.data.shards import read_manifest
from llm.errors import DamagedError, one_line_errors, say_error
from llm.run.console import start_logging
from llm.run.models import with_parents
from llm.run.runs import Run, check_files, find_folders, load
from llm.trainer.checkpoint import BAD_PREFIX, PREFIX, find_fault


def verify(run: Run) -> tuple[list[str], list[str]]:
    """(what was looked at, what is wrong), a few words each."""
    seen: list[str] = []
    faults: list[str] = []
    if run.is_done:
        try:
            seen.append(f"{check_files(run)} files")
            if run.stage == "shards" and "parts" not in run.results:  # a mixture has none of its own
                manifest = read_manifest(run.path / "shards")
                seen.append(f"{len(manifest.train.shards) + len(manifest.held_out.shards)} shards")
        except DamagedError as error:
            faults.append(str(error))
    checkpoints = sorted((run.path / "checkpoints").glob(f"{PREFIX}*"))
    faults += [f"{path}: {fault}" for path in checkpoints if (fault := find_fault(path))]
    faults += [f"{path} was set aside as damaged" for path in (run.path / "checkpoints").glob(f"{BAD_PREFIX}*")]
    if checkpoints:
        seen.append(f"{len(checkpoints)} checkpoints")
    return seen, faults


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.verify", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="run", help="a folder, a name, or a glob such as 'pretrain/*'")
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for")
    arguments = parser.parse_args(argv)
    start_logging()
    with one_line_errors():
        damaged, named = 0, []
        for name in arguments.runs:
            for folder in find_folders(arguments.outputs, name):
                try:
                    named.append(load(folder))
                except DamagedError as error:
                    damaged += 1
                    say_error(str(error))
        runs = with_parents(named)
        number = len(runs) + damaged
        for run in runs:
            seen, faults = verify(run)
            damaged += bool(faults)
            print(f"{'damaged' if faults else run.state:<10} {run.path}  {', '.join(seen) or 'nothing to check yet'}")
            for fault in faults:
                say_error(fault)
        if damaged:
            raise DamagedError(f"{damaged} of {number} runs are damaged.")


if __name__ == "__main__":
    main()
