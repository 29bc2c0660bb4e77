"""Several processes that train one model together, started by torchrun; with one process every function here does the plain thing.

    with distributed.joined():                # at the top of the command
        facts = distributed.on_main(prepare)  # rank 0 works, the others wait for what it returns
        with distributed.main_first():        # rank 0 first, the others when it is done: they find its files
            images = prepared_images(...)

Only rank 0, the main process, writes files and speaks. What fails there ends all of them: RunError. The processes of several nodes need one
disk for the run, the data and the cache of prepared images. Objects pass between them as pickles: they trust each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
from torch import distributed, nn

from pipeline.errors import RadloopError, RunError

STEP_TIMEOUT = timedelta(hours=1)
"""For a process that does not come to a step: a checkpoint on a slow disk takes minutes, a dead process is torchrun's to notice."""
WORK_TIMEOUT = timedelta(days=7)
"""For rank 0 at work alone: decoding a large archive takes hours."""

Result = TypeVar("Result")

_talk: list[Any] = []
"""The group that objects pass through, on the host: on a GPU a wait of hours would be work, and end by its timeout."""


class MainEnded(RunError):
    """Raised where rank 0 failed, which says why itself."""


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that torchrun started, until the block ends; nothing where there is but one."""
    start()
    try:
        yield
    finally:
        stop()


def start() -> None:
    """Joins the processes that torchrun started (WORLD_SIZE and the like are set), each with its own GPU where there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if backend == "nccl" and here > gpus:
        raise RunError(
            f"torchrun: expected one process a GPU, found {here} processes for {gpus}: --nproc-per-node {gpus}"
        )
    idist.initialize(backend, timeout=STEP_TIMEOUT)
    _talk.append(distributed.new_group(backend="gloo", timeout=WORK_TIMEOUT))


def stop() -> None:
    """Leaves the other processes, without waiting for them."""
    if _talk:
        _talk.clear()
        idist.finalize()


def processes() -> int:
    """How many train together."""
    return int(idist.get_world_size())


def rank() -> int:
    """This process's number, from 0."""
    return int(idist.get_rank())


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def device(otherwise: torch.device) -> torch.device:
    """This process's own GPU, where there are several processes with one each."""
    return torch.device(idist.device()) if processes() > 1 else otherwise


def on_main(work: Callable[[], Result]) -> Result:
    """What `work` returns on the main process, everywhere. Where it fails there, the others raise MainEnded."""
    if processes() == 1:
        return work()
    if not is_main():
        return _heard()
    with _telling_failure():
        result = work()
    _tell(("", result))
    return result


@contextmanager
def main_first() -> Iterator[None]:
    """The block on the main process, then on the others. Where it fails there, the others raise MainEnded."""
    if processes() == 1:
        yield
    elif is_main():
        with _telling_failure():
            yield
        _tell(("", None))
    else:
        _heard()
        yield


def wait() -> None:
    """Until all are here."""
    if processes() > 1:
        distributed.barrier(group=_talk[0])


def parallel(network: nn.Module, *, on_gpu: bool) -> nn.Module:
    """The network whose gradients are means over the processes (DDP), batch norm over all of their images on GPUs; itself for one.

    To be made anew when other parameters begin to learn: those that do not when it is made are never shared.
    """
    if processes() == 1:
        return network
    if not on_gpu:
        return nn.parallel.DistributedDataParallel(network)
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return nn.parallel.DistributedDataParallel(network, device_ids=[idist.get_local_rank()])


def unsynchronised(network: nn.Module) -> AbstractContextManager[None]:
    """Gradients of a part that is not the step's last stay here until the last one's are shared."""
    return network.no_sync() if isinstance(network, nn.parallel.DistributedDataParallel) else nullcontext()


def share_buffers(network: nn.Module) -> None:
    """Batch norm's statistics are rank 0's everywhere, as DDP has it: without SyncBatchNorm each process counts its own."""
    if processes() > 1:
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


def summed(values: torch.Tensor) -> torch.Tensor:
    """Over the processes, element by element: a new tensor on the same device, for which a GPU is not waited for."""
    if processes() == 1:
        return values.clone()
    total = values.clone()
    distributed.all_reduce(total)
    return total


def gathered(values: torch.Tensor, count: int) -> torch.Tensor:
    """(m, ...) of each process, whose row i is about item i * processes + rank, to (count, ...) in the order of items."""
    if processes() == 1:
        return values[:count]
    parts = [torch.empty_like(values) for _ in range(processes())]
    distributed.all_gather(parts, values.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)[:count]


@contextmanager
def _telling_failure() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # A message of radloop's own holds no patient's data; another's might.
        _tell((str(error) if isinstance(error, RadloopError) else type(error).__name__, None))
        raise


def _tell(message: tuple[str, Any]) -> None:
    distributed.broadcast_object_list([message], src=0, group=_talk[0])


def _heard() -> Any:
    message: list[Any] = [None]
    distributed.broadcast_object_list(message, src=0, group=_talk[0])
    failure, result = message[0]
    if failure:
        raise MainEnded(f"the main process ended: {failure}")
    return result
