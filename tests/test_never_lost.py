"""Killed at any moment, a training that is resumed is the one that was not killed: to the last digit, each event once."""

from __future__ import annotations

import functools
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from pipeline.training import checkpoint
from pipeline.training.checkpoint import Fit
from pipeline.training.feed import BatchSampler
from tests.tiny_fit import fork_server, history, same_fit, tiny_fit

RECIPE: dict[str, Any] = {
    "epochs": 4, "accumulate": 2, "ema": 0.9, "mixup": 0.2, "unfreeze_every": 2, "optimizer": "adamw", "weight_decay": 0.01,
}  # fmt: skip
MOMENTS = ["place", "save", "replace", "fsync", "add_scalar", "flush", "write_history"]
"""Where a killer waits: before each part of a step, within a checkpoint's writing, before and between what is made durable."""


def _counted(function: Callable[..., Any], kill_at: list[int]) -> Callable[..., Any]:
    """`function`, before whose call number `kill_at[0]` the process is killed."""

    @functools.wraps(function)
    def counted(*arguments: Any, **options: Any) -> Any:
        kill_at[0] -= 1
        if kill_at[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return counted


def _killed_while_saving(state: Any, file: Any, kill_at: list[int]) -> None:
    """torch.save whose file is cut in half in the fatal call."""
    whole = io.BytesIO()
    torch.serialization.save(state, whole)
    kill_at[0] -= 1
    if kill_at[0] < 0:
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    file.write(whole.getvalue())


def _run(run: Path, moment: str, number: int, every_s: float) -> None:
    """In a process of its own: a fit that is killed at the moment's call `number`, from 0."""
    checkpoint.CHECKPOINT_EVERY_S = every_s
    left = [number]
    if moment == "save":
        torch.save = functools.partial(_killed_while_saving, kill_at=left)
    else:
        owner: Any = {
            "place": BatchSampler, "replace": os, "fsync": os, "add_scalar": SummaryWriter, "flush": SummaryWriter,
            "write_history": Fit,
        }[moment]  # fmt: skip
        setattr(owner, moment, _counted(getattr(owner, moment), left))
    torch.set_num_threads(1)
    tiny_fit(run, **RECIPE)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes that are killed: with another number of threads, sums are added up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fit]:
    """The training that nobody killed."""
    run = tmp_path_factory.mktemp("whole")
    return run, tiny_fit(run, **RECIPE)


def _events(run: Path) -> list[tuple[int, float]]:
    """As they are in the files, whatever TensorBoard would hide."""
    events = EventAccumulator(str(run / "tensorboard"), purge_orphaned_data=False).Reload()
    return [(event.step, event.value) for event in events.Scalars("val_loss")]


@pytest.mark.slow
@settings(
    max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(moment=st.sampled_from(MOMENTS), numbers=st.lists(st.integers(0, 20), min_size=1, max_size=2), data=st.data())
def test_a_killed_training_resumes_as_if_nothing_had_been(
    whole: tuple[Path, Fit], tmp_path_factory: pytest.TempPathFactory, moment: str, numbers: list[int], data: st.DataObject
):  # fmt: skip
    """Killed once or twice, wherever it then was, whether each epoch is written or hardly any."""
    expected_run, expected = whole
    run = tmp_path_factory.mktemp("killed")
    every_s = data.draw(st.sampled_from([0.0, 1e9]))
    for number in numbers:
        process = fork_server().Process(target=_run, args=(run, moment, number, every_s))
        process.start()
        process.join(60)
        assert process.exitcode in (-signal.SIGKILL, 0), process.exitcode
    resumed = tiny_fit(run, **RECIPE)
    same_fit(run, expected_run, resumed, expected)
    assert _events(run) == _events(expected_run)
    assert _events(run) == list(
        zip(history(run)["epoch"], history(run)["val_loss"].astype("float32").astype(float), strict=True)
    )
    assert not [path for path in run.iterdir() if path.name.endswith(".part") and "checkpoint" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "number"), [("place", 10), ("save", 1), ("replace", 3), ("write_history", 1)])
def test_the_killers_do_kill(tmp_path: Path, moment: str, number: int):
    """And what they leave is whole: the checkpoint and the history of epochs that were done."""
    process = fork_server().Process(target=_run, args=(tmp_path, moment, number, 0.0))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(history(tmp_path)) >= 1
    assert (tmp_path / "checkpoint.pt").is_file()
