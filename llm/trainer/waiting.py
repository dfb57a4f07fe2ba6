"""A data loader that knows how long it was waited for: where reading is what holds training up."""

import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class TimedLoader(DataLoader[Any]):
    """torch's, with a clock around each batch that is asked for. Moving it to the device comes after."""

    waited_seconds = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # of what is given out, as DataLoader's own are
        batches = super().__iter__()
        while True:
            began = time.perf_counter()
            batch = next(batches, _END)
            self.waited_seconds += time.perf_counter() - began
            if batch is _END:
                return
            yield batch


def waited_seconds(loader: Any) -> float:
    """How long batches of a loader were waited for since it was made; 0 for one that has no clock."""
    return loader.waited_seconds if isinstance(loader, TimedLoader) else 0.0


_END = object()
