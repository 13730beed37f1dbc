"""``python -m benchmarks.limit``: the fastest convolution and matrix product that this machine shows, in GFLOP/s."""

import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.measure import show

SECONDS = 3.0  # per kind of work


def limit() -> dict[str, float]:
    """``convolution`` and ``matmul`` in float32 and bfloat16: the best of many repeats."""
    found = {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            square = torch.randn(2048, 2048).to(dtype)
            found[f"matmul {name}"] = best(lambda square=square: square @ square, 2 * 2048**3)
            image = torch.randn(1, 64, 24, 24, 48).to(dtype, memory_format=torch.channels_last_3d)
            weight = torch.randn(64, 64, 3, 3, 3).to(dtype, memory_format=torch.channels_last_3d)
            operations = 2 * weight.numel() * image[0, 0].numel()
            found[f"convolution {name}"] = best(lambda i=image, w=weight: F.conv3d(i, w, padding=1), operations)
    return found


def best(action: Callable[[], object], operations: int) -> float:
    """GFLOP/s of the fastest repeat."""
    action()
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return operations / min(times) / 1e9


if __name__ == "__main__":
    show(limit())
