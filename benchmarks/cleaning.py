"""How fast documents are cleaned, by level and by step: python -m benchmarks.cleaning [path] prints a table in MB/s.

The text is a file, folder or archive of your own, or made here: Korean sentences of which one document in twenty has
what each step looks for. One process, one core; a step's figure is that of the step alone.
"""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.harness import options, print_table
from llm.config.data import CleaningConfig, CleaningLevel, DataConfig, DataKind
from llm.data.clean import STEPS, Cleaner
from llm.data.files import find_files, read_files
from llm.data.records import Document

MB = 1e6
ROUNDS = 3  # the best of which is shown
TEXT = """나는 우리는 오늘 어제 학교에서 도서관에서 시장에서 바닷가에서 책을 편지를 노래를 사진을 이야기를 읽었다
썼다 불렀다 나누었다 그러나 그리고 정부는 국회는 법률에 따라 시행령으로 정한다 경제가 성장하면서 기술의 발전이
사람들의 생활을 바꾸었다 2024년 3월 제12조 95.2%"""
WORDS = TEXT.split()
FAULTS = ["\u200b", "  \u3000", "ㆍ", "\ue012", "010-1234-5678", "hong@example.com", "<b>굵게</b>", "&nbsp;", "\x07"]


def made_text(megabytes: float, *, seed: int = 0) -> list[Document]:
    """Documents of about 2 kB, each different."""
    draw = random.Random(seed)
    documents: list[Document] = []
    size = 0
    while size < megabytes * MB:
        words = draw.choices(WORDS, k=240)
        if draw.random() < 0.05:
            words[draw.randrange(240)] += draw.choice(FAULTS)
        lines = [" ".join(words[start : start + 12]) + "." for start in range(0, 240, 12)]
        documents.append(Document("\n".join(lines), f"{len(documents)}"))
        size += len(documents[-1].text.encode())
    return documents


def megabytes_per_second(documents: Sequence[Document], clean: Callable[[], Cleaner]) -> float:
    """The best of a few rounds over the documents."""
    size = sum(len(document.text.encode()) for document in documents)
    best = 0.0
    for _ in range(ROUNDS):
        cleaner = clean()
        start = time.process_time()
        for document in documents:
            cleaner.clean(document)
        best = max(best, size / MB / (time.process_time() - start))
    return best


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("path", nargs="?", help="text to clean; made here, if there is none")
    parser.add_argument("--megabytes", type=float, default=10)
    chosen = parser.parse_args()
    if chosen.path is None:
        documents = made_text(chosen.megabytes)
    else:
        config = DataConfig(name="text", kind=DataKind.text, path=chosen.path)
        documents = [record for record in read_files(find_files(config), config) if isinstance(record, Document)]
    configs = {
        f"level {level.name}": CleaningConfig(level=level) for level in (CleaningLevel.light, CleaningLevel.strict)
    }
    configs |= {name: CleaningConfig(**{name: True}) for name in STEPS}  # type: ignore[arg-type]
    speeds = {name: megabytes_per_second(documents, partial(Cleaner, alone)) for name, alone in configs.items()}
    rows = [(name, f"{speed:.1f}") for name, speed in speeds.items()]
    print_table(f"cleaning {len(documents)} documents, MB per CPU second", ("what", "MB/s"), rows)


if __name__ == "__main__":
    main()
