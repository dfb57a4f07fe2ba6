"""Compare runs: what differs in their configs and what came out, in the terminal, as Markdown and as one HTML page.

finding    names -> entries: runs, and jobs of a sweep
choices    entries -> choices, seeds averaged, ranked
effects    what each key does;  base  the best against its base;  samples  curves  what runs wrote as they went
report     all of it together -> tables, text (terminal, Markdown), page (HTML)
"""

from llm.compare.command import main
from llm.compare.differing import held_out_notes, varying
from llm.compare.ending import page_at_end
from llm.compare.tables import Comparison, compare, output_console, shown, tables

__all__ = [
    "Comparison",
    "compare",
    "held_out_notes",
    "main",
    "output_console",
    "page_at_end",
    "shown",
    "tables",
    "varying",
]
