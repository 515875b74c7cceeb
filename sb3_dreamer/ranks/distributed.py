"""
Several processes as one learner, started by torchrun: rank, world size, means over all ranks.

Without torchrun, every function here returns what it is given. The environment variables are those of torchrun (``RANK``,
``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``) and two more: with ``SB3_DREAMER_DISTRIBUTED=0`` every
process learns independently, and ``SB3_DREAMER_TIMEOUT`` is the number of seconds after which a silent rank is lost (600).
"""

import atexit
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch as th
import torch.distributed as dist

from sb3_dreamer.ranks.heartbeat import Heartbeat, RankError, first_line

Result = TypeVar("Result")

_DEFAULT_TIMEOUT = 600.0
#: Time between two checks of the other ranks while waiting
_POLL = timedelta(seconds=1)
#: A rank that sends signs of life is waited for indefinitely: it may evaluate for hours
_NEVER = timedelta(days=365)


def _number(name: str, default: int) -> int:
    """Value of an integer environment variable."""
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise RankError(f"The environment variable {name} must be a whole number, but is {text!r}: use torchrun.") from None


def timeout() -> float:
    """Seconds after which a silent rank is lost."""
    text = os.environ.get("SB3_DREAMER_TIMEOUT", "")
    try:
        seconds = float(text) if text else _DEFAULT_TIMEOUT
    except ValueError:
        seconds = -1.0
    if not 0.0 < seconds < float("inf"):
        raise RankError(f"SB3_DREAMER_TIMEOUT must be a positive number of seconds, but is {text!r}.")
    return seconds


def world_size() -> int:
    """Number of processes that learn together; 1 without torchrun."""
    if os.environ.get("SB3_DREAMER_DISTRIBUTED", "1") == "0":
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else max(_number("WORLD_SIZE", 1), 1)


def rank() -> int:
    """Index of this process; rank 0 logs, evaluates and saves."""
    if world_size() == 1:
        return 0
    return dist.get_rank() if dist.is_initialized() else _number("RANK", 0)


def share(name: str, value: int) -> int:
    """
    Divide a quantity equally among the ranks.

    :param name: of the option
    :param value: for all ranks together
    :return: for one rank
    :raises ValueError: naming rank and value, if there is a remainder
    """
    size = world_size()
    if value % size:
        near = max(size * round(value / size), size)
        raise ValueError(f"Rank {rank()}: {name}={value} cannot be divided among {size} ranks: use a multiple, e.g. {near}.")
    return value // size


def device_of_rank(device: th.device | str) -> th.device | str:
    """
    Choose this rank's GPU.

    :param device: as given to the algorithm; only "auto" and "cuda" leave a choice
    :return: the same, or the GPU of this rank
    :raises RankError: naming rank and GPU, if the machine has too few
    """
    if world_size() == 1 or str(device) not in ("auto", "cuda") or not th.cuda.is_available():
        return device
    local, available = _number("LOCAL_RANK", 0), th.cuda.device_count()
    if local >= available:
        raise RankError(
            f"Rank {rank()} needs GPU {local} of its machine, which has {available}: start at most {available} processes per "
            "machine, or use device='cpu'."
        )
    th.cuda.set_device(local)
    return th.device("cuda", local)


class Ranks:
    """
    The connected processes.

    Gradients use the default group (NCCL for GPUs, gloo for CPUs), where a silent rank is an error after the timeout.
    Agreements use a second group (gloo), where a rank is waited for as long as it sends signs of life.
    """

    def __init__(self) -> None:
        self.size, self.rank = dist.get_world_size(), dist.get_rank()
        self.control = dist.new_group(backend="gloo", timeout=_NEVER)
        store = dist.distributed_c10d._get_default_store()
        self.heartbeat = Heartbeat(store, self.rank, self.size, timeout())

    def finish(self, work: Any) -> None:
        """
        Wait for a collective operation, however long the other ranks take to reach it.

        :param work: the operation
        :raises RankError: if a rank is lost
        """
        with self.heartbeat.waiting():
            while True:
                was_over = work.is_completed()
                try:
                    work.wait(_POLL)
                    return
                except RuntimeError as error:
                    if was_over:
                        raise self.heartbeat.lost(error) from error
                    self.heartbeat.check()

    def gather(self, mine: th.Tensor) -> list[th.Tensor]:
        """
        Gather tensors of all ranks.

        :param mine: on the CPU, of the same shape on all ranks
        :return: the tensors by rank
        """
        everyone = [th.empty_like(mine) for _ in range(self.size)]
        self.finish(dist.all_gather(everyone, mine.contiguous(), group=self.control, async_op=True))
        return everyone


_ranks: Ranks | None = None


def joined() -> Ranks | None:
    """The connected processes; None before :func:`join`, and without torchrun."""
    return _ranks


def join() -> None:
    """
    Connect to the other processes; does nothing without torchrun, or if they are connected already.

    :raises RankError: naming rank and address, if they cannot be reached
    """
    global _ranks
    size = world_size()
    if size == 1 or _ranks is not None:
        return
    if not dist.is_initialized():
        me, seconds = rank(), timeout()
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing or not 0 <= me < size:
            said = f"{', '.join(missing)} not set" if missing else f"RANK={me}"
            raise RankError(
                f"Rank {me} of {size} has no rendezvous: {said}. Start with `torchrun --nproc-per-node {size} ...`; with "
                "SB3_DREAMER_DISTRIBUTED=0 every process learns independently."
            )
        try:
            _within(2 * seconds, partial(_meet, me, size, timedelta(seconds=seconds)))
        except (RuntimeError, ValueError) as error:  # the store raises either
            raise RankError(
                f"Rank {me} of {size} waited up to {seconds:g} s at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, "
                f"but not all ranks arrived. ({type(error).__name__}: {first_line(error)})"
            ) from error
    _ranks = _within(timeout(), Ranks)
    atexit.register(_ranks.heartbeat.stop)  # before the store is destroyed


def _within(seconds: float, function: Callable[[], Result]) -> Result:
    """Call something that may wait for a frozen machine; a ``RankError`` after so many seconds."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="sb3_dreamer rendezvous", daemon=True).start()
    try:
        return future.result(seconds)
    except FutureTimeoutError:
        raise RankError(
            f"Rank {rank()} of {world_size()} waited {seconds:g} s for the store at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')}, which does not answer: its machine may be frozen."
        ) from None


def _meet(me: int, size: int, patience: timedelta) -> None:
    """Create the group for gradients."""
    store, _, _ = next(dist.rendezvous("env://", rank=me, world_size=size, timeout=patience))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        # With --master-port torchrun's store survives a restart, and with it the addresses of dead processes. Several machines
        # need another rendezvous (--rdzv-backend c10d), which starts with a new store
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if th.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=me, world_size=size, timeout=patience)


def leave() -> None:
    """Disconnect from the other processes; for tests, and for scripts that continue as one process."""
    global _ranks
    if _ranks is not None:
        _ranks.heartbeat.stop()
        _ranks = None
        dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------------------- tensors


def add_up_(tensor: th.Tensor) -> None:
    """
    Replace a tensor by its sum over all ranks, the same bits on every rank.

    Two ranks on CPUs exchange their tensors, in half the time of gloo's all-reduce: its background thread would have to run
    twice while the ranks occupy the cores.

    :param tensor: contiguous, of the same shape on all ranks
    :raises RankError: if a rank is lost
    """
    ranks = _ranks
    assert ranks is not None
    try:
        if ranks.size > 2 or tensor.device.type != "cpu":
            dist.all_reduce(tensor)
            return
        others = th.empty_like(tensor)
        sending, receiving = dist.isend(tensor, 1 - ranks.rank), dist.irecv(others, 1 - ranks.rank)
        assert sending is not None and receiving is not None
        receiving.wait()
        sending.wait()
    except RuntimeError as error:
        raise ranks.heartbeat.lost(error) from error
    tensor += others


@th.no_grad()
def averages(tensors: Sequence[th.Tensor]) -> list[th.Tensor]:
    """
    Means over all ranks, in one operation.

    :param tensors: of one dtype and device, the same shapes on all ranks
    :return: parts of one tensor, with the strides of the input; without torchrun the tensors themselves
    :raises RankError: if a rank is lost
    """
    ranks = _ranks
    if ranks is None or not tensors:
        return list(tensors)
    flat = th.cat([tensor.reshape(-1) for tensor in tensors])
    add_up_(flat)
    flat /= ranks.size
    parts = [part.view_as(own) for part, own in zip(flat.split([own.numel() for own in tensors]), tensors, strict=True)]
    return [part if own.is_contiguous() else th.empty_like(own).copy_(part) for part, own in zip(parts, tensors, strict=True)]


def average(tensor: th.Tensor) -> th.Tensor:
    """
    Mean of a tensor over all ranks.

    :param tensor: any
    :return: a constant; without torchrun the tensor itself
    """
    if _ranks is None:
        return tensor
    return averages([tensor.detach() if tensor.is_floating_point() else tensor.detach().to(th.float32)])[0]


def batch_mean(values: th.Tensor) -> th.Tensor:
    """
    Mean over the batches of all ranks together, for losses that are not linear in the mean.

    The gradient is this rank's own part, so that the mean of the ranks' gradients is the gradient of the mean.

    :param values: of this rank's batch, of the same size on all ranks
    :return: scalar
    """
    own = values.mean()
    return own if _ranks is None else own + (average(own) - own).detach()


# ------------------------------------------------------------------------------------------------------------- objects


def gather(value: Any) -> list[Any]:
    """
    Gather values of all ranks. They travel as JSON: nothing that a peer sends is executed.

    :param value: of what JSON knows; tuples come back as lists, numbers of NumPy as plain ones
    :return: the values by rank; without torchrun a list of one
    """
    if _ranks is None:
        return [value]
    content = json.dumps(value, default=_plain).encode()
    sizes = [int(size) for size in _ranks.gather(th.tensor([len(content)]))]
    mine = th.zeros(max(sizes), dtype=th.uint8)
    mine[: len(content)] = th.frombuffer(bytearray(content), dtype=th.uint8)
    everyone = _ranks.gather(mine)
    return [json.loads(part[:size].numpy().tobytes()) for part, size in zip(everyone, sizes, strict=True)]


def _plain(value: Any) -> Any:
    """For JSON: numbers and arrays as Python's; text of everything else, such as what an environment puts into its infos."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def broadcast(tensors_of: Any) -> Any:
    """
    Send tensors of rank 0 to all ranks.

    :param tensors_of: tree of tensors and plain values of rank 0, ignored on the other ranks
    :return: rank 0's, on the CPU unless this is rank 0
    """
    if _ranks is None:
        return tensors_of
    file = io.BytesIO()
    if _ranks.rank == 0:
        th.save(tensors_of, file)
    size = th.tensor([len(file.getvalue())])
    _ranks.finish(dist.broadcast(size, 0, group=_ranks.control, async_op=True))
    data = bytearray(file.getvalue()) if _ranks.rank == 0 else bytearray(int(size))
    content = th.frombuffer(data, dtype=th.uint8)
    _ranks.finish(dist.broadcast(content, 0, group=_ranks.control, async_op=True))
    if _ranks.rank == 0:
        return tensors_of
    return th.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)


@contextmanager
def failures_are_told() -> Iterator[None]:
    """
    Context in which a failing rank reports the reason to the others.

    The launcher's SIGTERM then raises an error with this reason instead of ending the process silently.
    """
    ranks = _ranks
    assert ranks is not None
    in_main_thread = threading.current_thread() is threading.main_thread()
    takes_over = in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def on_terminate(number: int, frame: Any) -> None:
        if not ranks.heartbeat.is_losing:
            raise ranks.heartbeat.ended()

    if takes_over:
        signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    except BaseException as error:
        ranks.heartbeat.tell(error)
        raise
    finally:
        if takes_over:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
