"""python -m llm.chat"""

from llm.chat.command import main

main()
