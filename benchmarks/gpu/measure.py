"""What every part of the GPU benchmark shares: devices, timing, ceilings, kernel counts, tables."""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


class Counts(NamedTuple):
    """What one call does: kernels started, waits of the host for the device, operators of PyTorch."""

    launches: int
    waits: int
    operators: int


def make_parser(description: str) -> argparse.ArgumentParser:
    """The flags of every part."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script out (default %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="smallest models and images")
    parser.add_argument("--seconds", type=float, default=2.0, help="time given to each figure (default %(default)s)")
    return parser


def exact_float32() -> None:
    """Switches TensorFloat-32 off: comparisons with float32 figures need all its digits."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def synchronize(device: str) -> None:
    """Waits until the device has done everything."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(call: Callable[[], Any], device: str, seconds: float = 2.0, warmup: int = 2) -> float:
    """Median seconds of a call, by CUDA events on a GPU; as many calls as fit, at least one."""
    for _ in range(warmup):
        call()
    synchronize(device)
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while not times or (time.perf_counter() < deadline and len(times) < 100):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        else:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def count(call: Callable[[], Any], device: str) -> Counts:
    """Kernels, waits and operators of one call."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    synchronize(device)
    with profile(activities=activities) as record:
        call()
    names = [event.name for event in record.events()]
    launches = sum(name in LAUNCHES for name in names)
    # The profiler itself waits once, at its end.
    waits = max(0, sum(name in WAITS for name in names) - (device == "cuda"))
    return Counts(launches, waits, sum(name.startswith("aten::") for name in names))


def peak_gigabytes(call: Callable[[], Any], device: str) -> float:
    """Largest memory allocated on the GPU during a call, with all that was allocated before; 0 on a CPU."""
    if device != "cuda":
        call()
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / 1e9


def free(device: str) -> None:
    """Gives back the memory of what is no longer referenced."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def product_flops(device: str, tiny: bool, dtype: torch.dtype = torch.bfloat16) -> float:
    """Floating-point operations a second of one large matrix product."""
    side = 256 if tiny else 8192
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / measure(lambda: a @ b, device, 0.5)


def copy_bytes(device: str, tiny: bool) -> float:
    """Bytes a second, read and written, of one large copy on the device."""
    source = torch.empty(2**20 if tiny else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / measure(lambda: target.copy_(source), device, 0.5)


def autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to a dtype, or nothing."""
    return torch.autocast(device, dtype) if dtype is not None else nullcontext()


def begin_table(*names: str) -> None:
    """Prints a markdown table's head; `add_row` continues, so that a part that is cut short keeps what it measured."""
    print("\n| " + " | ".join(names) + " |\n|" + "---|" * len(names), flush=True)


def add_row(*cells: Any) -> None:
    """Prints a row; fractions have three digits."""
    print("| " + " | ".join(map(_cell, cells)) + " |", flush=True)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return " ".join(str(value).split()).replace("|", "/")[:200]
