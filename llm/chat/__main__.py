"""python -m llm.chat"""

from llm.chat.command import main

if __name__ == "__main__":  # a process that renders a template imports this module, too
    main()
