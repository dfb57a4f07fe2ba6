"""The data choices of conf/data as configs, and which of them fits a raw record."""

from functools import cache

from llm.config import DataConfig, DataKind, Shape
from llm.config.choices import data_presets
from llm.data.records import Conversation, Document, Fault
from llm.data.sources.fields import head, values
from llm.data.sources.formats import Raw
from llm.data.sources.layouts import conversation, document
from llm.data.sources.shapes import names_columns, with_usual_names


@cache
def presets() -> dict[str, DataConfig]:
    """Every choice of conf/data that reads files, by its name."""
    return data_presets()


def fits(raw: Raw, config: DataConfig) -> int:
    """How well a preset fits a raw record: 0 if not at all, else the number of its own keys that the record has."""
    layout = config.layout
    if layout.require is not None and not values(raw.value, layout.require):
        return 0
    if config.kind is DataKind.text:
        made: Document | Conversation | Fault = document(raw, config.text_field, layout)
        paths = [config.text_field, layout.group, layout.require]
        if layout.group is not None and not values(raw.value, layout.group):
            return 0
    else:
        made = conversation(raw.value, raw.origin, layout, text_field=config.text_field)
        if isinstance(made, Conversation) and made.shape == Shape.tagged.name:
            return len(made.messages)  # marks that are found are more than a key
        if isinstance(made, Conversation) and not names_columns(layout):
            # by usual names it is less than a preset that names the columns, by its own more than one that does not
            return 1 if with_usual_names(raw.value, layout) != layout else 3
        paths = [layout.messages, layout.question, layout.input, layout.answer, layout.require]
    if isinstance(made, Fault):
        return 0
    return sum(any(key in raw.value for key in head(path)) for path in paths if path is not None)
