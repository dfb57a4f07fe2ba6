"""A command -> its terminal output as an SVG: `python docs/picture.py docs/demo.svg python -m llm.demo`."""

import io
import os
import subprocess
import sys

from rich.console import Console
from rich.text import Text

COLUMNS = 110


def main(path: str, command: list[str]) -> None:
    environment = os.environ | {"COLUMNS": str(COLUMNS), "FORCE_COLOR": "1"}
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(printed))
    console.save_svg(path, title=" ".join(command))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
