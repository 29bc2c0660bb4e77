"""Fitting a network with MONAI's engines: epochs of training, each followed by validation, recorded and resumable.

Events: MONAI's trainer runs the epochs and `TrainingStep` their steps; `ValidationHandler` runs the evaluator after each; then the learning
rate is set, a row goes to `history.csv` and TensorBoard, and `checkpoint.pt` is written whole. The rows decide what is best and when to
stop, so a resumed run decides alike. Under torchrun several processes share each step; the main one writes and speaks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from monai.inferers import SimpleInferer
from torch import nn

from pipeline.config import Training
from pipeline.errors import ConfigError, RunError
from pipeline.progress import say
from pipeline.training import distributed
from pipeline.training.checkpoint import HISTORY_COLUMNS as HISTORY_COLUMNS
from pipeline.training.checkpoint import Fit as Fit
from pipeline.training.feed import BatchSampler, InOrder, TrainingData, strata
from pipeline.training.losses import ImageLosses, image_losses
from pipeline.training.optimization import MovingAverage, Schedule, Unfreezing, make_optimizer
from pipeline.training.step import Bfloat16Inferer, TrainingStep
from pipeline.training.validation import ValidationFigures
from pipeline.training.watch import TENSORBOARD_FOLDER, Curves, Watch

EPOCH_SEEDS_APART, RANK_SEEDS_APART = 100_003, 1_000_000_007
"""Between the seeds of dropout of two runs, and of two processes: more than any training has epochs, and any sweep has seeds."""


def fit(
    network: nn.Module,
    training: TrainingData,
    validation: TrainingData,
    settings: Training,
    *,
    run: Path,
    seed: int,
    device: torch.device,
    progress: bool,
) -> Fit:
    """Trains `network` and returns the fit with the best epoch's weights; resumes from a checkpoint in `run`.

    `network` takes what `training.input` gives to (n, k) logits. RunError where the loss is no number any more, the disk is full, or the
    checkpoint is another training's; ConfigError where there are fewer images than a step's parts need.
    """
    progress = progress and distributed.is_main()
    _place(network, device)
    batches = _batches(training, settings, seed, lambda: len(state.history) + 1)
    state = _start(network, settings, run, batches.steps)
    state.resume(clean=distributed.is_main())
    if not state.ended:
        _run_epochs(state, training, validation, batches, seed, device, progress)
    elif distributed.is_main():
        _write_again(state)
    if progress:
        say(f"training ended: {state.ended}")
    return state


def _place(network: nn.Module, device: torch.device) -> None:
    """On the device, its 2-D convolutions channels last, which is the faster on either kind of device."""
    network.to(device)
    if not any(parameter.ndim == 5 for parameter in network.parameters()):
        network.to(memory_format=torch.channels_last)


def _batches(training: TrainingData, settings: Training, seed: int, epoch: Callable[[], int]) -> BatchSampler:
    batches = BatchSampler(
        len(training.labels),
        settings.batch_size,
        seed=seed,
        epoch=epoch,
        accumulate=settings.accumulate,
        processes=distributed.processes(),
        rank=distributed.rank(),
        strata=strata(training.labels) if settings.sampling == "balanced" else (),
    )
    least = 2 * settings.accumulate * distributed.processes()
    if settings.batch_size < least:
        raise ConfigError(
            f"training.batch_size: expected at least {least}, two images for each part of each process, found {settings.batch_size}"
        )
    if not len(batches):
        raise ConfigError(
            f"training images: expected at least two for each process, found {len(training.labels)} for {distributed.processes()}"
        )
    return batches


def _start(network: nn.Module, settings: Training, run: Path, epoch_steps: int) -> Fit:
    optimizer = make_optimizer(network, settings)
    schedule = Schedule(optimizer, settings, epoch_steps)
    average = MovingAverage(network, settings.ema) if settings.ema else None
    return Fit(network, optimizer, schedule, settings, run, average)


def _run_epochs(
    state: Fit, training: TrainingData, validation: TrainingData, batches: BatchSampler, seed: int, device: torch.device, progress: bool
) -> None:  # fmt: skip
    epochs = state.settings.epochs
    losses = image_losses(training.labels, _classes(state.network, training), state.settings).to(device)
    step = TrainingStep(state, losses, batches, seed)
    trainer, evaluator = _engines(state, training, validation, losses, step, batches, device)
    watch = Watch(
        epochs=epochs, batches=len(batches), images=batches.images, device=device, show=progress, lost=_lost(state)
    )
    curves = _curves(state)
    unfreezing = Unfreezing(state.network, state.settings.unfreeze_every)
    trainer.add_event_handler(Events.EPOCH_STARTED, _begin_epoch, state, unfreezing, seed)
    watch.attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, _before_validation, state)
    ValidationHandler(interval=1, validator=evaluator).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, _record, evaluator, state, step, watch, curves)
    trainer.load_state_dict({"epoch": len(state.history), "max_epochs": epochs, "epoch_length": len(batches)})
    try:
        trainer.run()
    finally:
        watch.close()
        if curves:
            curves.close()


def _engines(
    state: Fit, training: TrainingData, validation: TrainingData, losses: ImageLosses, step: TrainingStep, batches: BatchSampler,
    device: torch.device,
) -> tuple[SupervisedTrainer, SupervisedEvaluator]:  # fmt: skip
    on_gpu, settings, processes = device.type == "cuda", state.settings, distributed.processes()
    options: dict[str, Any] = {
        "device": device,
        "non_blocking": on_gpu,
        "decollate": False,
        "inferer": Bfloat16Inferer() if on_gpu else SimpleInferer(),
        "to_kwargs": {},
    }
    trainer = SupervisedTrainer(
        max_epochs=settings.epochs,
        train_data_loader=training.loader(batches, on_gpu=on_gpu),
        network=state.network,
        optimizer=state.optimizer,
        loss_function=losses,
        prepare_batch=training.input,
        iteration_update=step,
        **options,
    )
    part = max(1, settings.batch_size // (settings.accumulate * processes))
    count = len(validation.labels)
    shares = InOrder(count, part, processes=processes, rank=distributed.rank())
    evaluator = SupervisedEvaluator(
        val_data_loader=validation.loader(shares, on_gpu=on_gpu),
        network=state.validated,
        prepare_batch=validation.input,
        **options,
    )
    ValidationFigures(losses, count, device).attach(evaluator, "validation")
    return trainer, evaluator


def _classes(network: nn.Module, training: TrainingData) -> int:
    """As the network's head has them; some classes may have no image."""
    head = getattr(network, "head", None)
    if isinstance(head, nn.Linear):
        return head.out_features
    return training.labels.shape[1] if training.labels.ndim == 2 else int(training.labels.max()) + 1


def _begin_epoch(trainer: SupervisedTrainer, state: Fit, unfreezing: Unfreezing, seed: int) -> None:
    epoch, on_gpu = trainer.state.epoch, trainer.state.device.type == "cuda"
    if unfreezing.begin(epoch) or trainer.network is state.network:
        trainer.network = distributed.parallel(state.network, on_gpu=on_gpu)
        if state.settings.compile and on_gpu:
            trainer.network = torch.compile(trainer.network)
    trainer.network.train()
    # Dropout: a resumed epoch draws what it would have drawn.
    torch.manual_seed(seed * EPOCH_SEEDS_APART + epoch + distributed.rank() * RANK_SEEDS_APART)


def _before_validation(_: Engine, state: Fit) -> None:
    distributed.share_buffers(state.network)
    distributed.share_buffers(state.validated)
    state.validated.eval()  # else MONAI's evaluator sets the mode of every layer back and forth for each batch


def _record(
    trainer: SupervisedTrainer, evaluator: SupervisedEvaluator, state: Fit, step: TrainingStep, watch: Watch, curves: Curves | None
) -> None:  # fmt: skip
    """The epoch's row, and all that follows from it."""
    figures = {"epoch": trainer.state.epoch, "learning_rate": step.rate} | watch.figures() | evaluator.state.metrics
    row = distributed.on_main(lambda: {name: figures[name] for name in HISTORY_COLUMNS})  # its times are everybody's
    if not math.isfinite(row["train_loss"]):
        _lost(state)(row["train_loss"])
    state.waiting.append(watch.waited())
    state.add(row)
    distributed.on_main(lambda: _write(state, curves))
    watch.say_epoch(row, state.waiting[-1])
    if state.ended:
        trainer.terminate()


def _curves(state: Fit) -> Curves | None:
    """TensorBoard's, on the main process."""
    if not distributed.is_main():
        return None
    with state.written(state.run / TENSORBOARD_FOLDER):
        return Curves(state.run, state.history)


def _write_again(state: Fit) -> None:
    """History and curves of a fit that had ended: whoever was killed after its last checkpoint has a row less there."""
    state.write_history()
    curves = _curves(state)
    if curves:
        curves.close()


def _write(state: Fit, curves: Curves | None) -> None:
    state.write()
    if curves:
        with state.written(state.run / TENSORBOARD_FOLDER):
            curves.add(state.history[-1])


def _lost(state: Fit) -> Callable[[float], None]:
    """What ends a training whose loss is no number any more."""

    def end(loss: float) -> None:
        message = (
            f"the training loss is {loss} in epoch {len(state.history) + 1}; {state.kept}"
            "lower training.learning_rate and train again"
        )
        raise RunError(message) if distributed.is_main() else distributed.MainEnded(message)

    return end
