"""A command -> its terminal output as an SVG: `python docs/picture.py docs/demo.svg python -m llm.demo`."""

import io
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

COLUMNS = 110


def main(path: str, command: list[str]) -> None:
    environment = os.environ | {"COLUMNS": str(COLUMNS), "FORCE_COLOR": "1"}
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(printed))
    Path(path).write_text(wide(console.export_svg(title=" ".join(command))), encoding="utf-8")


def wide(svg: str) -> str:
    """A picture in which Hangul is two columns wide: rich counts characters, and presses it into one."""

    def mended(match: re.Match[str]) -> str:
        length, attributes, text = match.groups()
        shown = unescape(text)
        return f'textLength="{float(length) / len(shown) * cell_len(shown):g}"{attributes}>{text}<'

    return re.sub(r'textLength="([\d.]+)"([^>]*)>([^<\n]+)<', mended, svg)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
