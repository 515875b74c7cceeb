"""
Everything that is measured on a GPU, in one process, since starting one takes longer than most measurements:

    python -m benchmarks.speed.gpu RESULTS.json [seconds]

What fails is told, and the rest goes on; so is what does not fit into the time. At the end come the kernels of an update.
"""

import gc
import sys
import time
import traceback

import torch as th
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.__main__ import main
from benchmarks.speed.configurations import CONFIGURATIONS, fill, make_model
from benchmarks.speed.update import one_update
from sb3_dreamer.algorithm.graphs import WARM_UP
from sb3_dreamer.common.precision import PRECISIONS

MEASUREMENTS = (
    "update --cuda-graphs --precision bfloat16",
    "update --cuda-graphs --precision bfloat16 --tf32",
    "update --cuda-graphs --tf32",
    "loop --envs 8 --cuda-graphs --precision bfloat16 --tf32 --overlap",
    "loop --envs 16 --cuda-graphs --precision bfloat16 --tf32 --overlap",
    "update --cuda-graphs",
    "act",
    "act --cuda-graphs",
    "loop --envs 8 --cuda-graphs --tf32",
    "loop --envs 8 --cuda-graphs --tf32 --overlap",
    "update",
    "update --precision bfloat16",
    "replay",
)


def measure(results: str, seconds: float, device: str = "cuda") -> int:
    """
    :param results: file to write to
    :param seconds: after which no measurement begins
    :param device: as in SB3
    :return: how many failed
    """
    failed, started = 0, time.perf_counter()
    for line in MEASUREMENTS:
        before = time.perf_counter()
        if before - started > seconds:
            print(f"left out: {line}", flush=True)
            continue
        try:
            main([*line.split(), "--config", "atari-gpu", "--device", device, "--threads", "8", "--results", results])
        except Exception:
            failed += 1
            traceback.print_exc()
        print(f"{line}: {time.perf_counter() - before:.0f} s", flush=True)
        gc.collect()
        if device == "cuda":
            th.cuda.empty_cache()
    return failed


def list_kernels(precision: str, shown: int = 20) -> None:
    """
    The kernels of one repeated update, those first that take longest together.

    :param precision: of matrix products
    :param shown: how many
    """
    th.set_float32_matmul_precision("high")
    model = make_model(CONFIGURATIONS["atari-gpu"], device="cuda", cuda_graphs=True, precision=precision)
    fill(model)
    update = one_update(model)
    for _ in range(WARM_UP + 3):
        update()
    th.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        update()
        th.cuda.synchronize()
    kernels = [(k.self_device_time_total / 1e3, k.count, k.key) for k in found.key_averages() if k.self_device_time_total]
    print(f"{precision}: {sum(k[1] for k in kernels)} kernels, busy for {sum(k[0] for k in kernels):.1f} ms", flush=True)
    for milliseconds, count, name in sorted(kernels, reverse=True)[:shown]:
        print(f"{milliseconds:8.2f} ms {count:6d}  {name[:100]}", flush=True)


if __name__ == "__main__":
    status = measure(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 600.0)
    for name in PRECISIONS:
        list_kernels(name)
    sys.exit(status)
