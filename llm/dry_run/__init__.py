"""dry_run=true: configs -> what each job would take, make and reuse; nothing is trained, and nothing is written.

survey.py  a config -> what its job would take
table.py   that, printed
"""

from llm.dry_run.survey import memory_of, survey
from llm.dry_run.table import show

__all__ = ["memory_of", "show", "survey"]
