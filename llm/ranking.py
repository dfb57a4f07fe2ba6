"""python -m llm.ranking: the earlier name of python -m llm.compare, of which its ranking is the first table."""

from llm.compare.command import main

if __name__ == "__main__":
    main()
