"""A training step of trainer=gpu -> the plan of it on an H100, made without a GPU: kernels, bytes, FLOPs, memory.

Tensors are fake ones on a CUDA device that does nothing (fake_gpu.cpp); Dynamo, AOTAutograd and Inductor compile the
real step for them, up to the kernels' code. What is not compiled is counted operator by operator. No time is measured.
This has to be imported before torch, so a process of its own plans:

    python -m benchmarks.gpu_plan --only llama
"""

import argparse
import ctypes
import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def _load_fake_gpu() -> None:
    """Build the device where it is not built yet, and load it before torch looks for one."""
    if "torch" in sys.modules:
        raise ImportError("benchmarks.gpu_plan has to be imported before torch: plan in a process of its own")
    source = Path(__file__).with_name("fake_gpu.cpp")
    torch_folder = Path(str(importlib.util.find_spec("torch").origin)).parent  # type: ignore[union-attr]
    version = (torch_folder / "version.py").read_bytes()
    name = f"ttukttak_fake_gpu_{os.getuid()}_{hashlib.sha256(source.read_bytes() + version).hexdigest()[:16]}.so"
    library = Path(tempfile.gettempdir()) / name
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}")
        flags = ["-shared", "-fPIC", "-std=c++20", f"-I{torch_folder / 'include'}"]
        subprocess.run([os.environ.get("CXX", "g++"), *flags, str(source), "-o", str(made)], check=True)
        made.replace(library)
    for each in (torch_folder / "lib/libc10.so", torch_folder / "lib/libtorch_cpu.so", library):
        ctypes.CDLL(str(each), mode=ctypes.RTLD_GLOBAL)


_load_fake_gpu()

import torch  # noqa: E402
from torch._guards import CompileContext  # noqa: E402
from torch._inductor import ir, memory  # noqa: E402
from torch._inductor.graph import GraphLowering  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", gcnArchName="", major=9, minor=0, multi_processor_count=132, warp_size=32,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    total_memory=80 * 2**30, shared_memory_per_block=49152, shared_memory_per_block_optin=232448,
    L2_cache_size=50 * 2**20,
)  # fmt: skip
GPU = torch.device("cuda", 0)
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
WRITTEN_ONLY = {"zero_", "fill_", "copy_", "_foreach_zero_", "_foreach_copy_", "normal_", "uniform_"}
MADE = {
    "device",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "lift_fresh",
    "alias",
}


@dataclass(frozen=True)
class Kernel:
    """One launch on the device."""

    name: str  # of an operator or an external kernel; of one that Inductor makes, what it fuses
    bytes: int  # read and written, each buffer once
    flops: float = 0.0  # of matrix products
    sizes: tuple[int, ...] = ()  # of all dimensions of what it reads and writes
    is_fused: bool = False  # made by Inductor
    is_compiled: bool = False  # called by what Inductor made
    is_optimizer: bool = False


@dataclass
class Graph:
    """What Inductor made of a graph."""

    is_backward: bool
    kernels: list[Kernel]
    rise: int  # bytes over those that are there when it is called, at the most


@dataclass
class Plan:
    """A step, counted."""

    kernels: list[Kernel] = field(default_factory=list)
    graphs: int = 0  # that were compiled until its end
    waits: Counter[str] = field(default_factory=Counter)  # of the host for the device
    peak: int = 0  # bytes

    def summary(self) -> dict[str, Any]:
        """What budgets are kept of."""
        return {
            "graphs": self.graphs,
            "kernels": len(self.kernels),
            "gigabytes": round(sum(kernel.bytes for kernel in self.kernels) / 1e9, 4),
            "teraflops": round(sum(kernel.flops for kernel in self.kernels) / 1e12, 5),
            "peak_megabytes": round(self.peak / 1e6, 1),
            "waits": dict(self.waits),
        }


def pretend() -> None:
    """Have torch take the device for an H100, and Inductor stop before it writes kernels."""
    import torch.cuda.amp.common as amp
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import compile_fx, config, scheduler
    from torch.nn.utils import clip_grad

    amp.amp_definitely_not_available = lambda: False
    values = {"get_device_properties": H100, "get_device_capability": (9, 0), "get_device_name": H100.name}
    values |= {
        "is_bf16_supported": True,
        "current_device": 0,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "device_count": 1,
    }
    values |= dict.fromkeys(("set_device", "synchronize", "manual_seed", "manual_seed_all", "_lazy_init"))
    for name, value in values.items():
        setattr(torch.cuda, name, lambda *_, _value=value, **__: _value)
    for owner in (CudaInterface, CudaInterface.Worker):
        owner.get_device_properties = staticmethod(lambda *_: H100)  # type: ignore[assignment]
        owner.current_device = staticmethod(lambda: 0)  # type: ignore[assignment]
    CudaInterface.device_count = CudaInterface.is_available = staticmethod(lambda: 1)  # type: ignore[assignment]
    CudaInterface.get_compute_capability = staticmethod(lambda *_: 90)  # type: ignore[assignment]
    CudaInterface.is_bf16_supported = staticmethod(lambda *_, **__: True)  # type: ignore[assignment]
    compile_fx.get_input_idxs_to_check = lambda *_: []  # whether they are aligned, as a fake one has no address
    clip_grad._has_foreach_support = lambda *_: True
    scheduler.has_triton = lambda: True
    config.compile_threads, config.fx_graph_cache = 1, False
    config.joint_graph_constant_folding = False  # which computes on the device
    torch._functorch.config.enable_autograd_cache = False
    GraphLowering.compile_to_module = _planned  # type: ignore[assignment, method-assign]


def _planned(lowering: GraphLowering) -> Any:
    """In place of a module of kernels: one whose call makes the outputs, and counts the kernels that would run."""
    lowering.init_wrapper_code()
    lowering._update_scheduler()
    nodes = lowering.scheduler.nodes
    kernels = [_kernel(lowering, node) for node in nodes if type(node).__name__ != "NopKernelSchedulerNode"]
    graph = Graph(is_backward=bool(lowering.is_backward), kernels=kernels, rise=_rise(lowering))
    Seen.active.graphs.append(graph)
    inputs, results = list(lowering.graph_inputs), lowering.graph_outputs

    def call(arguments: list[Any]) -> list[Any]:
        given = dict(zip(inputs, arguments, strict=True))
        symbols = _symbols(lowering, given)
        arguments.clear()
        Seen.active.run(graph)
        made: dict[str, torch.Tensor] = {}
        return [_output(result, given, made, symbols) for result in results]

    lowering.cache_key, lowering.cache_path, lowering.cache_linemap = "plan", None, []
    return SimpleNamespace(call=call, __file__="plan")


def _kernel(lowering: GraphLowering, node: Any) -> Kernel:
    is_fused = not type(node).__name__.startswith("Extern")
    names = {dep.name for dep in (*node.read_writes.reads, *node.read_writes.writes)}
    sizes: set[int] = set()
    for name in names:
        with_size = lowering.try_get_buffer(name)
        if with_size is not None and isinstance(with_size.get_output_spec(), ir.Layout):
            sizes |= {_hint(lowering, size) for size in with_size.get_size()}
    moved = node.get_read_write_buffers_sizes()
    if not is_fused:
        fx = getattr(node.node, "op_overload", None)
        name = str(fx) if fx is not None else str(getattr(node.node, "python_kernel_name", "extern"))
        name += _masked(name, len(node.node.inputs))
        flops = 0 if "att" in name else node.estimate_flops() or 0  # no count of it knows what is causal
        return Kernel(name, int(moved), float(flops), tuple(sorted(sizes)), is_compiled=True)
    origins = {
        str(origin.target).removeprefix("aten.").removeprefix("prims.").split(".")[0]
        for part in node.get_nodes()
        if part.node is not None
        for origin in part.node.get_origins()
    }
    return Kernel("+".join(sorted(origins)), int(moved), 0.0, tuple(sorted(sizes)), is_fused=True, is_compiled=True)


def _masked(name: str, num_inputs: int) -> str:
    """What is added to the name of an attention that was given a mask, and so knows of nothing causal."""
    return " masked" if "scaled_dot" in name and num_inputs > (8 if "backward" in name else 3) else ""


def _hint(lowering: GraphLowering, size: Any) -> int:
    return int(lowering.sizevars.optimization_hint(size, fallback=0))


def _rise(lowering: GraphLowering) -> int:
    """By Inductor's own account of its buffers: the most that is there, over what comes in."""
    scheduler = lowering.scheduler
    outputs = set(lowering.get_output_names())
    peak, given = memory.prepare_planning_info(
        scheduler.nodes, scheduler.name_to_buf, scheduler.name_to_fused_node, {*lowering.graph_inputs}, outputs
    )  # type: ignore[arg-type]
    return int(peak - sum(buffer.mpi_buffer.size_free for buffer in given.values()))


def _symbols(lowering: GraphLowering, given: dict[str, Any]) -> dict[Any, int]:
    """The values of symbolic sizes, by the inputs that have them."""
    found: dict[Any, int] = {}
    for name, value in given.items():
        declared: Any = lowering.graph_inputs[name]
        if isinstance(value, torch.Tensor):
            found |= dict(zip(declared.get_size(), map(int, value.shape), strict=True))
        else:
            found[declared] = int(value)
    return {symbol: value for symbol, value in found.items() if getattr(symbol, "free_symbols", None)}


def _output(result: Any, given: dict[str, Any], made: dict[str, torch.Tensor], symbols: dict[Any, int]) -> Any:
    """A tensor as it would be: an input, a view of what another output has, or a new one."""
    if isinstance(result, ir.NoneAsConstantBuffer):
        return None
    if not isinstance(result, ir.IRNode) or not result.has_tensor_output():
        return _int(getattr(result, "expr", result), symbols)
    name = result.get_name()
    layout = result.get_layout()
    shape = [_int(size, symbols) for size in layout.size]
    strides = [_int(stride, symbols) for stride in layout.stride]
    if isinstance(given.get(name), torch.Tensor):
        base = given[name]
    elif name in made:
        base = made[name]
    else:
        last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True) if size)
        made[name] = base = torch.empty(last + 1 if shape else 1, dtype=layout.dtype, device=layout.device)
    if base.dtype != layout.dtype or (name in given and shape == list(base.shape) and strides == list(base.stride())):
        return base
    return base.as_strided(shape, strides)


def _int(size: Any, symbols: dict[Any, int]) -> int:
    return int(size.subs(symbols)) if hasattr(size, "subs") else int(size)


class Seen(TorchDispatchMode):
    """Counts what runs on the device, what is held on it, and what the host waits for."""

    active: "Seen"

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.plan, self.graphs, self.is_optimizer = Plan(), list[Graph](), False
        self._known: set[int] = set()
        self._held = 0

    @classmethod
    def is_infra_mode(cls) -> bool:
        """So that Dynamo compiles while it is there."""
        return True

    def __enter__(self) -> "Seen":
        Seen.active, self.plan = self, Plan(peak=self._held)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.plan.graphs = len(self.graphs)

    def run(self, graph: Graph) -> None:
        self.plan.kernels += graph.kernels
        # in which transformers reads how many tokens each expert has
        self.plan.waits.update(kernel.name for kernel in graph.kernels if "grouped_mm_fallback" in kernel.name)
        self.plan.peak = max(self.plan.peak, self._held + graph.rise)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if CompileContext.try_get() is not None:
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        if name == "_local_scalar_dense":
            if args[0].device.type == "cuda":
                self.plan.waits[name] += 1
            return 1.0 if args[0].dtype.is_floating_point else 1
        if name == "_grouped_mm" and args[0].dtype is torch.float32:  # which kernels take, and no fake tensor
            out = func(args[0].bfloat16(), args[1].bfloat16(), *args[2:], **kwargs).float()
        else:
            out = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        for tensor in results:
            self._hold(tensor)
        if not any(tensor.device.type == "cuda" for tensor in (*given, *results)):
            return out
        self._note_wait(name, given, results, args, kwargs)
        is_view = all(r.untyped_storage()._cdata in {g.untyped_storage()._cdata for g in given} for r in results)
        is_view = is_view and bool(results) and not func._schema.is_mutable
        if name not in MADE and not is_view:
            self.plan.kernels.append(self._eager(func, name, given, results, (args, kwargs)))
        return out

    def _eager(self, func: Any, name: str, given: Any, results: Any, call: Any) -> Kernel:
        changed = {arg.name for arg in func._schema.arguments if arg.alias_info and arg.alias_info.is_write}
        changed -= {"grads"}  # which a fused optimizer writes where it scales them alone
        args, kwargs = call
        named = dict(zip((arg.name for arg in func._schema.arguments), args, strict=False)) | kwargs
        written = [leaf for key in changed for leaf in tree_leaves(named.get(key)) if isinstance(leaf, torch.Tensor)]
        read = list({id(tensor): tensor for tensor in given}.values())
        if name in WRITTEN_ONLY:
            read = [tensor for tensor in given if all(tensor is not other for other in written)]
        new = [] if func._schema.is_mutable else results
        moved = sum(_bytes(tensor) for tensor in (*read, *written, *new))
        sizes = tuple(sorted({size for tensor in (*given, *results) for size in tensor.shape}))
        name += _masked(name, sum(isinstance(arg, torch.Tensor) for arg in args))
        return Kernel(name, moved, _flops(name, args), sizes, is_optimizer=self.is_optimizer)

    def _note_wait(self, name: str, given: Any, results: Any, args: Any, kwargs: Any) -> None:
        devices = [{tensor.device.type for tensor in tensors} for tensors in (given, results)]
        if name in WAITS:
            self.plan.waits[name] += 1
        elif name in ("_to_copy", "copy_") and len(devices[0] | devices[1]) > 1:
            is_blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            source = (given[-1] if name == "copy_" else given[0]).device.type
            if is_blocking and not (source == "cpu" and given[-1].numel() == 1):
                self.plan.waits[f"{name} from {source}"] += 1

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device.type != "cuda" or storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self._held += storage.nbytes()
        self.plan.peak = max(self.plan.peak, self._held)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._held -= size


def _flops(name: str, args: Any) -> float:
    """Of a matrix product."""
    if name.removesuffix("_") not in ("mm", "bmm", "addmm", "baddbmm"):
        return 0.0
    a, b = args[-2:] if len(args) == 2 else args[1:3]
    return 2.0 * a.numel() * b.shape[-1]


def _bytes(tensor: torch.Tensor) -> int:
    """That a kernel moves for it: what is expanded is read once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


@dataclass(frozen=True)
class Asked:
    """What is planned."""

    architecture: str = "llama"
    layers: int = 2
    hidden: int = 768
    heads: int = 12
    kv_heads: int | None = None
    inner: int | None = None
    vocab: int = 50304
    rows: int = 32
    length: int = 1024
    packed: bool = False
    lora: bool = False
    checkpointing: bool = False
    compile: bool = True
    halved: bool = True  # the residual stream, as trainer=gpu has it
    base_precision: str = "fp32"
    algorithm: str = "adamw"


def shape_of(asked: Asked) -> Any:
    """The model on the meta device, as the stages make it."""
    from llm import model as models
    from llm.config.training import ModelConfig
    from llm.config.tuning import LoraConfig
    from llm.tokenizer.folder import Special

    config = ModelConfig(
        name="plan",
        architecture=asked.architecture,
        num_layers=asked.layers,
        num_heads=asked.heads,
        num_key_value_heads=asked.kv_heads,
        hidden_size=asked.hidden,
        intermediate_size=asked.inner,
        max_position_embeddings=asked.length,
    )
    special = Special(bos_id=0, eos_id=0, pad_id=0, tokens=())
    with torch.device("meta"):
        model: Any = models.build(config, vocab_size=asked.vocab, special=special)
        if asked.lora:
            dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[asked.base_precision]
            model = models.add_lora(model.to(dtype), LoraConfig(rank=16, alpha=32))
    return model


def batch_of(asked: Asked, *, documents: int, rows: int | None = None) -> dict[str, Any]:
    """A micro-batch on the host, as the loader brings it."""
    from llm.model import document_bounds

    rows = rows or asked.rows
    ends = torch.linspace(0, asked.length, documents + 1).long()
    positions = torch.cat([torch.arange(int(end - begin)) for begin, end in pairwise(ends)])
    positions = positions.expand(rows, -1).contiguous()
    tokens = {name: torch.zeros(rows, asked.length, dtype=torch.long) for name in ("input_ids", "labels")}
    bounds = document_bounds(positions)
    return tokens | {"position_ids": positions, "document_bounds": bounds, "num_labels": rows * asked.length}


class Step:
    """The training of a model on the fake device: NextTokenModule under Lightning's own trainer and strategy."""

    def __init__(self, asked: Asked) -> None:
        import pytorch_lightning as pl

        from llm.config.training import Accelerator, Algorithm, OptimizerConfig, Precision, TrainerConfig
        from llm.dry_run.memory import _leave_meta
        from llm.model import checkpoint_blocks, halve_experts, halve_residual
        from llm.trainer.module import NextTokenModule

        torch.compiler.reset()
        self.asked, self.number = asked, 0
        self.fake, self.seen = FakeTensorMode(), Seen()
        self.model = shape_of(asked).train()
        if asked.checkpointing:
            checkpoint_blocks(self.model, compiled=asked.compile)
        halve_experts(self.model)
        if asked.halved:
            halve_residual(self.model)
        config = TrainerConfig(
            max_steps=100, precision=Precision.bf16, compile=asked.compile, accelerator=Accelerator.gpu
        )
        optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=10, algorithm=Algorithm(asked.algorithm))
        rows: Any = SimpleNamespace(fit=lambda passes: passes(), cut=lambda batch, step: batch)
        self.module = NextTokenModule(self.model, optimizer, config, seed=0, rows=rows)
        self.trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        strategy = self.trainer.strategy
        strategy._root_device = GPU  # type: ignore[attr-defined]
        with self.fake, GPU, self.seen:
            _leave_meta(self.model)
            self.module._device = GPU
            strategy.connect(self.module)
            self.module.trainer = self.trainer
            self.trainer._data_connector.attach_datamodule(self.module, None)
            strategy.setup_optimizers(self.trainer)

    def take(self, *, documents: int = 1) -> Plan:
        """One step."""
        batch = self._fake(batch_of(self.asked, documents=documents))
        with self.fake, self.seen, _noting_optimizer(self.seen):
            self.module.training_step([batch], self.number)
        self.number += 1
        return self.seen.plan

    def validate(self, *, documents: int = 1, rows: int | None = None) -> Plan:
        """A batch of a validation."""
        from llm.model import next_token_nats
        from llm.trainer.strategy import autocast
        from llm.trainer.validation import not_training

        batch = self._fake(batch_of(self.asked, documents=documents, rows=rows))
        with self.fake, self.seen, torch.no_grad(), not_training(self.model), autocast(self.module._precision, GPU):
            moved = self.trainer.strategy.batch_to_device(batch, GPU)
            next_token_nats(self.model, moved)
        return self.seen.plan

    def _fake(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {k: self.fake.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@contextmanager
def _noting_optimizer(seen: Seen) -> Iterator[None]:
    """Tell apart what clips gradients and steps."""
    import llm.trainer.module as module

    clip_and_step = module.clip_and_step

    def marked(*args: Any, **kwargs: Any) -> Any:
        seen.is_optimizer = True
        try:
            return clip_and_step(*args, **kwargs)
        finally:
            seen.is_optimizer = False

    module.clip_and_step = marked
    try:
        yield
    finally:
        module.clip_and_step = clip_and_step


def plan(asked: Asked) -> Plan:
    """The second step of a training, as every later one."""
    step = Step(asked)
    documents = 4 if asked.packed else 1
    step.take(documents=documents)
    return step.take(documents=documents)


def dry_run_peak(asked: Asked) -> int:
    """What a dry run says of the same training, in bytes."""
    from unittest.mock import patch

    from llm.config.training import OptimizerConfig, Precision
    from llm.dry_run.memory import rehearse

    shape = {"rows": asked.rows, "sequence_length": asked.length, "accumulation": 1}
    how = {"checkpointing": asked.checkpointing, "is_residual_halved": asked.halved, "compile": asked.compile}
    how |= {"on_gpu": True, "precision": Precision.bf16}
    with patch("torch.cuda.is_available", return_value=True):
        made = rehearse(shape_of(asked), OptimizerConfig(learning_rate=1e-3, warmup_steps=1), **shape, **how)
    return made.total


def facts(asked: Asked) -> dict[str, Any]:
    """A step, counted; and the graphs there are after each of a run's batches, with a validation between any two."""
    step = Step(asked)
    graphs = []
    for documents in (4, 4, 40, 17, 3, 1) if asked.packed else (1, 1, 1):
        made = step.take(documents=documents)
        graphs.append(made.graphs)
        if len(graphs) == 2:
            summary = made.summary()
        step.validate(documents=documents, rows=3)
    return summary | {"graphs": graphs, "dry_run_megabytes": round(dry_run_peak(asked) / 1e6, 1)}


def cases() -> dict[str, Asked]:
    """What budgets are kept of, by name: two layers, for each further one adds the same."""
    made = {}
    for architecture in ("gpt2", "llama", "qwen3", "gemma3", "qwen3_moe"):
        for packed in (False, True):
            name, grouped = f"{architecture} {'packed' if packed else 'plain'}", None if architecture == "gpt2" else 4
            asked = Asked(architecture=architecture, packed=packed, kv_heads=grouped)
            made[name] = asked
            made[f"{name} lora"] = replace(asked, lora=True, base_precision="bf16")
    made["llama packed lora on fp32"] = replace(made["llama packed"], lora=True)
    return made


BUDGETS = Path(__file__).parent / "results" / "gpu_plan.json"
FAST = ("llama packed",)  # that make test holds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_plan", description=__doc__)
    parser.add_argument("--only", help="of the cases, by a part of their names; fast: those of make test")
    parser.add_argument("--update", action="store_true", help=f"write what is found into {BUDGETS.name}")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for name, asked in cases().items():
        if not (name in FAST if options.only == "fast" else (options.only or "") in name):
            continue
        try:
            found = facts(asked)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        print(json.dumps({name: found}), flush=True)
        if options.update:
            kept = json.loads(BUDGETS.read_text(encoding="utf-8")) if BUDGETS.exists() else {}
            lines = [
                f"{json.dumps(key)}: {json.dumps(budget)}" for key, budget in sorted((kept | {name: found}).items())
            ]
            BUDGETS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


pretend()
if __name__ == "__main__":
    main()
