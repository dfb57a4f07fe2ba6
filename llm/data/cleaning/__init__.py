"""Documents and a cleaning config -> the documents that are left, and an account of every byte that is not.

levels.py      which steps a level turns on
characters.py  characters and spaces repaired
markup.py      tags, entities and the lines that sites put on every page
personal.py    resident, phone and card numbers and e-mail addresses masked
quality.py     too short or long, too little Hangul, too much repetition
duplicates.py  exact and near duplicates
steps.py       the steps in their order, with what each kept, changed and dropped
report.py      the account as a table and as JSON
"""

from llm.data.cleaning.report import as_json, as_table
from llm.data.cleaning.steps import Cleaner, Dropped, StepCounts

__all__ = ["Cleaner", "Dropped", "StepCounts", "as_json", "as_table"]
