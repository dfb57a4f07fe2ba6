"""python -m llm.compare."""

from llm.compare.command import main

main()
