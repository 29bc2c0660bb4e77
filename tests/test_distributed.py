"""Two processes train as one that accumulates the same parts; one report, one checkpoint; what fails on the first ends both."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pipeline.errors import RunError
from pipeline.training import distributed
from tests.tiny_fit import fork_server, history, tiny_fit

FLOAT_ERROR = 1e-5
"""Gradients are added up in another order, in float32, over some twenty steps."""
PROCESSES = 2


def _process(rank: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...], queue: Any) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        with distributed.joined():
            queue.put((rank, work(*arguments)))
    except BaseException as error:
        queue.put((rank, (type(error).__name__, str(error), traceback.format_exc())))


def _together(work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What each process's `work` returned, or (class, message, traceback) of what it raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = fork_server()
    queue = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, port, work, arguments, queue)) for rank in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
    return [found[rank] for rank in range(PROCESSES)]


def _weights(run: Path, settings: dict[str, Any]) -> dict[str, Any]:
    fitted = tiny_fit(run, **settings)
    plain = {name: tensor.tolist() for name, tensor in fitted.network.state_dict().items()}
    return {"weights": plain, "history": fitted.history, "waiting": len(fitted.waiting)}


def _close(found: dict[str, Any], expected: Any) -> None:
    for name, values in found.items():
        torch.testing.assert_close(
            torch.tensor(values), expected.network.state_dict()[name], rtol=FLOAT_ERROR, atol=FLOAT_ERROR
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        {"clip_gradient": 0.5, "class_weights": "balanced"},
        {"mixup": 0.3, "ema": 0.9, "unfreeze_every": 1, "sampling": "balanced", "class_weights": "none"},
    ],
    ids=["clipping", "everything"],
)
def test_two_processes_are_one_that_accumulates_the_same_parts(tmp_path: Path, recipe: dict[str, Any]):
    """Without batch norm and dropout: weights, and every figure of the history; 33 images leave 9 over, in parts of 2 and 3."""
    options = {"norm": False, "dropout": 0.0, "batch_size": 12, "images": 33} | recipe
    alone = tiny_fit(tmp_path / "one", **options, accumulate=4)
    first, second = _together(_weights, tmp_path / "two", options | {"accumulate": 2})
    assert first["weights"] == second["weights"]
    assert first["history"] == second["history"]  # the times, too: both decide alike when to stop
    _close(first["weights"], alone)
    pd.testing.assert_frame_equal(
        history(tmp_path / "two"), history(tmp_path / "one"), rtol=FLOAT_ERROR, atol=FLOAT_ERROR
    )


@pytest.mark.slow
def test_with_ordinary_batch_norm_training_losses_agree_too(tmp_path: Path):
    """Each part has statistics of its own, alone and together; what is kept of them for validation is the first process's."""
    options = {"dropout": 0.0, "batch_size": 8, "images": 32}
    alone = tiny_fit(tmp_path / "one", **options, accumulate=2)
    first, second = _together(_weights, tmp_path / "two", options)
    assert first["weights"] == second["weights"]
    losses = [[row["train_loss"] for row in rows] for rows in (first["history"], alone.history)]
    assert losses[0] == pytest.approx(losses[1], rel=FLOAT_ERROR)
    assert [row["val_loss"] for row in first["history"]] != [row["val_loss"] for row in alone.history]


@pytest.mark.slow
def test_a_training_of_two_processes_resumes(tmp_path: Path):
    options = {"batch_size": 8}
    _together(_weights, tmp_path / "whole", options)
    _together(_weights, tmp_path / "parts", options | {"max_minutes": 1e-9})
    assert len(history(tmp_path / "parts")) == 1
    _together(_weights, tmp_path / "parts", options)
    pd.testing.assert_frame_equal(history(tmp_path / "parts"), history(tmp_path / "whole"), check_exact=True)
    assert len(list((tmp_path / "parts" / "tensorboard").iterdir())) == 1


def _order(folder: Path) -> list[Any]:
    """What `main_first` and `on_main` do."""
    with distributed.main_first():
        if distributed.is_main():
            (folder / "made").write_text("by the first")
        text = (folder / "made").read_text()
    shared = distributed.on_main(lambda: {"rank": distributed.rank()})
    distributed.wait()
    total = distributed.summed(torch.tensor([1.0 + distributed.rank()])).item()
    rows = torch.tensor([[0], [2]]) if distributed.rank() == 0 else torch.tensor([[1], [0]])
    return [text, shared, total, distributed.gathered(rows, 3).flatten().tolist(), distributed.processes()]


def _failing(folder: Path) -> None:
    def fail() -> None:
        raise RunError(f"{folder}: cannot be written")

    distributed.on_main(fail)


def _failing_first(folder: Path) -> None:
    with distributed.main_first():
        (folder / "missing").read_text()


@pytest.mark.slow
def test_the_first_goes_first_and_its_failure_is_everybodys(tmp_path: Path):
    assert _together(_order, tmp_path) == [["by the first", {"rank": 0}, 3.0, [0, 1, 2], 2]] * 2
    first, second = _together(_failing, tmp_path)
    assert first[:2] == ("RunError", f"{tmp_path}: cannot be written")
    assert second[:2] == ("MainEnded", f"the main process ended: {tmp_path}: cannot be written")
    first, second = _together(_failing_first, tmp_path)
    assert first[0] == "FileNotFoundError"
    assert second[:2] == ("MainEnded", "the main process ended: FileNotFoundError")


def test_one_process_does_the_plain_thing():
    network = torch.nn.Linear(2, 2)
    with distributed.joined(), distributed.main_first():
        assert distributed.on_main(lambda: 3) == 3
        distributed.wait()
    assert distributed.is_main()
    assert distributed.processes() == 1
    assert distributed.parallel(network, on_gpu=False) is network
    assert distributed.device(torch.device("meta")) == torch.device("meta")
    assert distributed.gathered(torch.arange(4), 3).tolist() == [0, 1, 2]
