"""A step between two records reads one value from the device, the gradients' norm, and nothing else waits for it.

On a CPU there is nothing to wait for, so what would wait on a GPU is counted: operators whose results the host needs,
and the ways to a tensor's values that go past the operators.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.config.training import Algorithm, OptimizerConfig
from llm.trainer.fit import fit
from llm.trainer.module import NextTokenModule
from tests.test_fast_path import Seen
from tests.test_trainer import quick_peak, task  # noqa: F401  # a fixture

OPERATORS = {
    *("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::allclose"),
    *("aten::masked_select", "aten::unique_dim", "aten::_unique2"),
}
METHODS = ("tolist", "numpy", "cpu", "item", "__array__", "__bool__", "__int__", "__float__", "__index__")
NORM = Counter({"aten::_local_scalar_dense": 1, "__float__": 1})
STEPS, RECORD = (1, 2, 3), 4  # counted from 0; the fifth step writes a record


@pytest.fixture
def waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[int, Counter[str]]]:
    """What each step waited for, from its batch's arrival on the device to the last hook after it."""
    seen = Seen()
    steps: dict[int, list[str]] = {}
    start, end = NextTokenModule.on_train_batch_start, NextTokenModule.on_train_batch_end

    def note_start(module: NextTokenModule, batch: Any, batch_idx: int) -> None:
        steps[batch_idx] = seen.names = []
        start(module, batch, batch_idx)

    def note_end(module: NextTokenModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        end(module, outputs, batch, batch_idx)
        seen.names = []  # the next batch is made on the host

    def noted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.names.append(name)
            return method(tensor, *args, **kwargs)

        return call

    def run(*, micro_batch_size: int = 4, **settings: Any) -> dict[int, Counter[str]]:
        every = {"log_every_steps": 5, "validate_every_steps": 100, "checkpoint_every_steps": 100}
        made = task(tmp_path, max_steps=6, micro_batch_size=micro_batch_size, **every, **settings)
        with monkeypatch.context() as patch, seen:
            patch.setattr(NextTokenModule, "on_train_batch_start", note_start)
            patch.setattr(NextTokenModule, "on_train_batch_end", note_end)
            for name in METHODS:
                patch.setattr(torch.Tensor, name, noted(name, getattr(torch.Tensor, name)))
            fit(made)
        assert sorted(steps) == [*range(6)]
        assert all(len(names) > 100 for names in steps.values())
        return {
            step: Counter(name for name in names if name in (*OPERATORS, *METHODS)) for step, names in steps.items()
        }

    return run


@pytest.mark.parametrize(("micro_batch_size", "algorithm"), [(4, Algorithm.adamw), (2, Algorithm.muon)])
def test_a_step_without_a_record_reads_the_norm_of_its_gradients_alone(
    micro_batch_size: int, algorithm: Algorithm, waits: Callable[..., dict[int, Counter[str]]]
) -> None:
    how = OptimizerConfig(learning_rate=1e-2, warmup_steps=3, algorithm=algorithm)
    found = waits(micro_batch_size=micro_batch_size, optimizer=how)
    assert {step: found[step] for step in STEPS} == {step: NORM for step in STEPS}
    assert found[RECORD]["aten::_local_scalar_dense"] == 2  # and its loss: what is counted is seen
