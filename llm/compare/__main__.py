"""python -m llm.compare <runs or sweep>."""

from llm.compare.command import main

main()
