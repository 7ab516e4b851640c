"""The loop: from settings to a finished run folder, and from a stopped run to the same end.

What a step does depends only on the settings, the data, the weights and (seed, epoch, step): batches are
drawn by that triple, the learning rate is a function of the step, and torch's generators are seeded anew for
every step. On the CPU, a run that goes on from a checkpoint ends with the bits of one that was never stopped.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np
import torch
from torch import Tensor

from csham.data import PackedDataset, prepare
from csham.data.checks import check_images
from csham.data.sources import check_there
from csham.errors import UserError, first_line_of
from csham.memory import retain_memory
from csham.training.checkpoints import load_checkpoint, save_checkpoint, writer_of
from csham.training.config import MACHINE_SETTINGS, TrainConfig, check_trackers
from csham.training.course import is_over, schedule_notes, stopped_early, with_more_epochs, words_on_course
from csham.training.evaluation import collect_in_turns, keeps_probabilities, predict_in_turns
from csham.training.finish import finish
from csham.training.graphs import GraphedAnswers, GraphedSteps, Replays
from csham.training.interrupt import STOPPING, TIME_IS_OVER, InterruptedRunError, StopRequest, TimeLimit
from csham.training.metrics import Predictions, accuracy_names
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder
from csham.training.session import Session, State, environment, start_session
from csham.training.step import Step, Steps
from csham.training.steps import learning_rate, steps_notes, steps_of_update, updates_in
from csham.training.sums import is_main_process, write_listed
from csham.training.trackers import Trackers
from csham.training.turns import EVALUATED, Turns, drain

__all__ = ["DivergedError", "newest_checkpoint", "resume", "resume_in_turns", "train", "train_in_turns"]

# Reading a number back from a GPU makes it wait for the step, so there the loss is looked at only this often.
_STEPS_BETWEEN_LOOKS = 20


class DivergedError(UserError):
    """The loss or the weights are no longer finite."""


def train(
    config: TrainConfig,
    *,
    run: Path | str | None = None,
    dataset: PackedDataset | None = None,
    progress: QuietProgress | None = None,
    limit: TimeLimit | None = None,
) -> dict[str, Any]:
    """Train one network and leave a run folder behind.

    Args:
        config: The settings (:func:`csham.training.config.resolve`).
        run: The run folder, which must not exist; None names it after the settings, under ``runs``.
        dataset: Dataset that ``config.data`` names, if it is open already.
        progress: Told what happens.
        limit: Time by which it stops and saves by itself; None takes as long as it takes.

    Returns:
        Contents of summary.json.

    Raises:
        UserError: Something given cannot work.
        InterruptedRunError: A signal or ``limit`` stopped the run; :func:`resume` goes on with it.
    """
    return drain(train_in_turns(config, run=run, dataset=dataset, progress=progress, limit=limit))


def train_in_turns(
    config: TrainConfig,
    *,
    run: Path | str | None = None,
    dataset: PackedDataset | None = None,
    progress: QuietProgress | None = None,
    limit: TimeLimit | None = None,
    stop: StopRequest | None = None,
    shares_process: bool = False,
) -> Turns[dict[str, Any]]:
    """Train as :func:`train` does, and give way after every step.

    Args:
        config: The settings.
        run: The run folder.
        dataset: The images.
        progress: Told what happens.
        limit: Time by which it stops, where no ``stop`` is given.
        stop: Asks for a stop in place of signals, which are left to the caller.
        shares_process: True if other runs take turns with this one, which environment.json tells.
    """
    progress = progress or QuietProgress()
    folder = RunFolder(Path(run) if run is not None else Path("runs") / config.default_name())
    config.check_names()
    config.check_code()
    check_trackers(config.trackers)
    folder.check_free(config.data)
    retain_memory()
    dataset = dataset or _open(config, progress)
    found = check_images(dataset, dataset.split(config.seed, config.validation), allow_leaks=config.allow_leaks)
    session = start_session(config, dataset, folder, progress)
    session.note("training with " + ", ".join(session.notes))
    for note in [*steps_notes(session.config, len(session.parts.train)), *session.loss.notes, *found]:
        session.note(note)
    state = session.new_state()
    start = session.checkpoint(state)
    begun = time.monotonic()
    if session.is_main:
        known = environment(session, shares_process=shares_process)
        folder.create(session.config, known, lambda path: save_checkpoint(path, start))
    session.accelerator.wait_for_everyone()
    _tell_need(session, limit, time.monotonic() - begun)
    return (yield from _run(session, state, limit, stop))


def resume(
    run: Path | str,
    *,
    epochs: int | None = None,
    schedule: str | None = None,
    lr: float | None = None,
    patience: int | None = None,
    dataset: PackedDataset | None = None,
    progress: QuietProgress | None = None,
    limit: TimeLimit | None = None,
    **machine_settings: Any,
) -> dict[str, Any]:
    """Go on with a run where its last checkpoint was written, or with a finished one for more epochs.

    Args:
        run: The run folder.
        epochs: Of all together, more than a finished run has; None adds none.
        schedule: Course of the learning rate over the added epochs; None begins the run's own again.
        lr: Highest learning rate of the added epochs; None takes the run's own.
        patience: Added epochs without a better validation top-1 after which the run stops; None trains all of them.
        dataset: The run's images, if they are open already; they may lie elsewhere than when it began, and the run
            then says where.
        progress: Told what happens.
        limit: As in :func:`train`.
        **machine_settings: Settings that change where and when things happen, not what is computed, such as
            ``device``.

    Returns:
        Contents of summary.json; that of a finished run at once.

    Raises:
        UserError: The folder is no run, its checkpoint is damaged, or its settings or data have changed.
        InterruptedRunError: A signal or ``limit`` stopped the run again.
    """
    added = {"epochs": epochs, "schedule": schedule, "lr": lr, "patience": patience}
    return drain(resume_in_turns(run, added, dataset=dataset, progress=progress, limit=limit, **machine_settings))


def resume_in_turns(
    run: Path | str,
    added: Mapping[str, Any] | None = None,
    *,
    dataset: PackedDataset | None = None,
    progress: QuietProgress | None = None,
    limit: TimeLimit | None = None,
    stop: StopRequest | None = None,
    **machine_settings: Any,
) -> Turns[dict[str, Any]]:
    """Go on as :func:`resume` does, and give way after every step.

    Args:
        run: The run folder.
        added: ``epochs``, ``schedule``, ``lr`` and ``patience``; None adds no epochs.
        dataset: The run's images.
        progress: Told what happens.
        limit: Time by which it stops, where no ``stop`` is given.
        stop: As in :func:`train_in_turns`.
        **machine_settings: As in :func:`resume`.
    """
    progress = progress or QuietProgress()
    folder = RunFolder(Path(run))
    more: dict[str, Any] = dict.fromkeys(("epochs", "schedule", "lr", "patience")) | dict(added or {})
    before = _resumed(folder.read_config(), machine_settings, more)
    config = before if more["epochs"] is None else with_more_epochs(folder, before, **more)
    if folder.finished and config is before:
        summary = folder.read_summary()
        folder.settle()
        progress.note(f"{folder.path} is finished; there is nothing to resume.")
        return summary
    config.check_code()
    check_trackers(config.trackers)
    path, content, fault = newest_checkpoint(folder)
    if fault and is_main_process():
        progress.note(f"{fault} Going on from {path}, which is whole")
    retain_memory()
    if dataset is None:
        check_there(config.data, str(folder.path), "Say where they are now: csham train DATA --resume RUN.")
        dataset = _open(config, progress)
    moved = dataset.source != config.data
    session = start_session(replace(config, data=dataset.source), dataset, folder, progress, begun=content)
    state = session.restore(content, path)
    if moved and session.is_main:
        folder.write_text("config.yaml", replace(folder.read_config(), data=dataset.source).to_yaml())
    session.note(f"resuming {folder.path} at epoch {state.epoch + 1}, step {state.step + 1}")
    _note_threads(session, folder)
    if config is not before:
        for note in [words_on_course(config, config.epochs), *schedule_notes(config)]:
            session.note(note)
    return (yield from _run(session, state, limit, stop, reopen=config is not before))


_CHECKPOINT_KEYS = (
    "config", "data", "network", "model", "optimizer", "scaler",
    "epoch", "step", "sums", "seconds", "history", "best",
)  # fmt: skip


def newest_checkpoint(
    folder: RunFolder, expected: tuple[str, ...] = _CHECKPOINT_KEYS
) -> tuple[Path, dict[str, Any], str]:
    """Read the last checkpoint, or where that is damaged, the chosen one: the epochs since then are trained again.

    Args:
        folder: The run.
        expected: Keys that the checkpoint must have; by default those that a run goes on with.

    Returns:
        The file, what it holds, and what is wrong with the last one if it is not that.

    Raises:
        UserError: There is none that can be used.
    """
    try:
        return folder.last, load_checkpoint(folder.last, expected), ""
    except UserError as err:
        try:
            return folder.best, load_checkpoint(folder.best, expected), f"{str(err).partition('. ')[0]}."
        except UserError:
            raise err from err.__cause__


def _run(
    session: Session, state: State, limit: TimeLimit | None, stop: StopRequest | None, *, reopen: bool = False
) -> Turns[dict[str, Any]]:
    """Train from ``state`` to the end, alone in the run folder, to which ``reopen`` adds epochs."""
    lock = filelock.FileLock(session.folder.path / "checkpoints" / ".lock", timeout=0)
    own = StopRequest(lambda: session.note(STOPPING), limit)
    try:
        with lock if session.is_main else nullcontext(), own if stop is None else nullcontext():
            if reopen and session.is_main:
                session.folder.reopen(session.config)
            return (yield from Loop(session, state, stop or own, alone=stop is None).run())
    except filelock.Timeout as err:
        raise UserError(f"another process is training in {session.folder.path}.") from err
    except torch.OutOfMemoryError as err:
        raise _out_of_memory(session, err) from err
    except RuntimeError as err:
        if session.config.deterministic and "use_deterministic_algorithms" in str(err):
            raise _not_deterministic(str(err)) from err
        raise
    finally:
        session.progress.close()


class Loop:
    """One run under way.

    Attributes:
        session: Session that it works with.
        state: Progress of the run so far.
    """

    def __init__(self, session: Session, state: State, stop: StopRequest, *, alone: bool = True) -> None:
        self.session = session
        self.state = state
        self._steps: Steps | GraphedSteps = Steps(session, state.sums)
        self._answers: GraphedAnswers | None = None
        if session.config.graph:
            replays = Replays(session, alone=alone)
            self._steps = GraphedSteps(session, state.sums, replays)
            self._answers = GraphedAnswers(session, replays)
        self._trackers = Trackers(session, state)
        self._stop = stop
        self._saved_at = time.monotonic()
        self._started_at = time.monotonic()
        self._looked_at = time.monotonic()
        self._longest_step = self._longest_save = 0.0  # in seconds, between two looks at what to stop for

    def run(self) -> Turns[dict[str, Any]]:
        """Train every epoch that is left, then measure and write the results."""
        summary = None
        try:
            summary = yield from self._run()
        finally:
            self._trackers.finish(summary)
        return summary

    def _run(self) -> Turns[dict[str, Any]]:
        session, state = self.session, self.state
        if not self._is_over():
            self._warm_up()
        if session.is_main:
            if state.history:
                session.folder.write_metrics(state.history)
            session.progress.start(self._images_done(), session.config.epochs * self._images_per_epoch())
        self._looked_at = time.monotonic()
        while not self._is_over():
            yield from self._train_epoch()
            yield from self._end_epoch()
        if stopped_early(session.config, state.epoch, state.best):
            session.note(
                f"stopped early after epoch {state.epoch}: no better validation top-1 since {state.best['epoch']}"
            )
        return (yield from finish(session, state, self._predict))

    def _is_over(self) -> bool:
        return is_over(self.session.config, self.state.epoch, self.state.best)

    def _train_epoch(self) -> Turns[None]:
        session, state = self.session, self.state
        steps, accumulate = len(session.train_batches), session.config.accumulate
        session.begin_epoch(state.epoch)
        self._started_at = time.monotonic() - state.seconds
        while state.step < steps:
            together = steps_of_update(state.step, steps, accumulate)
            left = range(state.step, together.stop)
            self._steps.run(state.epoch, left, len(together))
            state.step = left.stop
            self._after_update(len(left))
            yield from self._give_way(len(left) * session.config.images_per_step)
        self._check_loss()
        state.seconds = time.monotonic() - self._started_at

    def _updates_per_epoch(self) -> int:
        return updates_in(len(self.session.train_batches), self.session.config.accumulate)

    def _updates_done(self) -> int:
        """Count the updates since the start of the run, the one of the step just done included."""
        done = updates_in(self.state.step, self.session.config.accumulate)
        return self.state.epoch * self._updates_per_epoch() + done

    def _after_update(self, steps: int) -> None:
        """Look at the loss, tell how far the run is, and save or stop where that is due.

        Only between updates: gradients are in no checkpoint.
        """
        session, state = self.session, self.state
        on_cpu = session.accelerator.device.type == "cpu"
        # The last step too: an epoch may have fewer than that, and all processes meet at its end anyway.
        look = _passed(state.step, steps, _STEPS_BETWEEN_LOOKS) or state.step == len(session.train_batches)
        if on_cpu or look:
            self._check_loss()
            self._tell()
        every = session.config.checkpoint_steps
        planned = every is not None and _passed(state.step, steps, every)
        if session.accelerator.num_processes > 1 and not (look or planned):
            return
        signum = self._look()
        late = time.monotonic() - self._saved_at >= session.config.checkpoint_seconds
        timed, asked, due = self._agree(signum == TIME_IS_OVER, signum is not None, late)
        if asked:
            self._save(session.folder.last)
            raise InterruptedRunError(session.folder.path, signum or (TIME_IS_OVER if timed else signal.SIGINT))
        if due or planned:
            self._save(session.folder.last)

    def _give_way(self, images: float) -> Turns[None]:
        left = time.monotonic()
        yield images
        away = time.monotonic() - left  # what others did meanwhile is not this run's
        self._started_at += away
        self._looked_at += away

    def _end_epoch(self) -> Turns[None]:
        """Measure the validation part, remember the epoch, and write everything down."""
        session, state = self.session, self.state
        row = yield from self._row()
        session.accelerator.wait_for_everyone()
        state.history.append(row)
        value = row["val_top1"] if row["val_top1"] is not None else float(state.epoch)
        chosen = not state.best or value > state.best["value"]
        if chosen:
            state.best = {"epoch": row["epoch"], "value": value}
        state.epoch, state.step, state.seconds = state.epoch + 1, 0, 0.0
        state.sums.zero_()
        begun = time.monotonic()
        write = self._checkpoint()
        if session.is_main:
            # The best first: a process killed in between repeats the epoch and writes it again, the same.
            paths = [session.folder.best] * chosen + [session.folder.last]
            session.folder.write_metrics(state.history, dict.fromkeys(paths, write))
            session.progress.epoch(row, session.config.epochs)
        self._longest_save = max(self._longest_save, time.monotonic() - begun)
        self._trackers.write(row)

    def _row(self) -> Turns[dict[str, Any]]:
        session, state = self.session, self.state
        loss, top1, top5, images = session.over_processes(state.sums).tolist()
        measured = {"loss": loss / images, "top1": 100 * top1 / images, "top5": 100 * top5 / images}
        row: dict[str, Any] = {"epoch": state.epoch + 1}
        row |= {
            f"train_{name}": measured[name] for name in accuracy_names(len(session.info.classes)) if name in measured
        }
        before = time.monotonic() - self._started_at
        row |= yield from self._measure("validation", "val")
        if session.config.track_test:
            row |= yield from self._measure("test", "test")
        row["lr"] = learning_rate(session.config, self._updates_done() - 1, self._updates_per_epoch())
        row["images_per_s"] = images / state.seconds
        row["seconds"] = state.seconds + time.monotonic() - self._started_at - before
        return row

    def _measure(self, part: str, prefix: str) -> Turns[dict[str, float | None]]:
        classes = len(self.session.info.classes)
        if not len(getattr(self.session.parts, part)):
            return dict.fromkeys(f"{prefix}_{name}" for name in accuracy_names(classes))
        predictions = yield from self._predict(part)
        return {f"{prefix}_{name}": value for name, value in predictions.accuracies(classes).items()}

    def _predict(self, part: str, keep: bool = False) -> Turns[Predictions]:
        """Let the network answer a part of the data, on all processes, and keep all probabilities if they are few."""
        session = self.session
        images = getattr(session.parts, part)
        keep = keep and keeps_probabilities(len(images), session.info.num_classes)
        if self._answers is not None and session.config.graph and len(images):
            answered = self._answers.of(part, keep=keep)
            predictions = yield from collect_in_turns(answered, give_way=self._give_way_while_measuring)
        else:
            predictions = yield from predict_in_turns(
                session.answering,
                session.evaluation_batches(part).in_order(),
                gather=_gather(session),
                give_way=self._give_way_while_measuring,
                keep=keep,
            )
        if not np.isfinite(predictions.losses).all():
            raise self._diverged(f"the {part} loss became {_nan_or_inf(torch.from_numpy(predictions.losses).sum())}")
        return predictions

    def _give_way_while_measuring(self, images: int) -> Turns[None]:
        # Other processes would wait forever for this one's answers; they stop at the next step instead.
        signum = self._look() if self.session.accelerator.num_processes == 1 else None
        if signum is not None:
            if self.state.step:  # after the last epoch all is saved, and the network may hold the best weights
                self._save(self.session.folder.last)
            raise InterruptedRunError(self.session.folder.path, signum)
        yield from self._give_way(EVALUATED * images)

    def _look(self) -> int | None:
        """Return what the run is to stop for, after telling how long a stop would take."""
        now = time.monotonic()
        self._longest_step = max(self._longest_step, now - self._looked_at)
        self._looked_at = now
        # The next look may be a step away, and a checkpoint comes after it.
        _tell_need(self.session, self._stop.limit, self._longest_step + self._longest_save)
        return self._stop.signum

    def _agree(self, *flags: bool) -> list[bool]:
        """Return which flags are up in any process: what follows is done by all of them or by none."""
        if self.session.accelerator.num_processes == 1:
            return list(flags)
        raised = torch.tensor([float(flag) for flag in flags], device=self.session.accelerator.device)
        return [bool(count) for count in self.session.over_processes(raised).tolist()]

    def _check_loss(self) -> None:
        state = self.state
        if not torch.isfinite(state.sums[0]):
            raise self._diverged(f"the loss became {_nan_or_inf(state.sums[0])}")

    def _save(self, path: Path) -> None:
        begun = time.monotonic()
        write = self._checkpoint()
        if self.session.is_main:
            write_listed({path: write})
        self._longest_save = max(self._longest_save, time.monotonic() - begun)

    def _checkpoint(self) -> Callable[[IO[bytes]], None]:
        """Return what writes a checkpoint, unless the weights are not worth keeping; every process calls it."""
        session, state = self.session, self.state
        self._saved_at = time.monotonic()
        if state.step:
            state.seconds = time.monotonic() - self._started_at
        self._check_loss()
        values = [v for v in session.network.state_dict().values() if v.is_floating_point()]
        largest = torch.stack([v.abs().amax().float() for v in values if v.numel()]).amax()
        if not torch.isfinite(largest):
            raise self._diverged(f"a weight became {_nan_or_inf(largest)}")
        return writer_of(session.checkpoint(state))

    def _diverged(self, what: str) -> DivergedError:
        session, state = self.session, self.state
        epoch, step = (state.epoch + 1, state.step) if state.step else (state.epoch, len(session.train_batches))
        steps = len(session.train_batches)
        return DivergedError(
            f"{what} at epoch {epoch}, step {step} of {steps}. Start again with a lower --lr (it was "
            f"{session.config.lr:g}). The last good checkpoint is {session.folder.last}."
        )

    def _tell(self) -> None:
        session, state = self.session, self.state
        if not session.is_main:
            return
        done = state.step * session.config.images_per_step
        seconds = time.monotonic() - self._started_at
        loss = float(state.sums[0] / state.sums[3])
        where = f"epoch {state.epoch + 1}/{session.config.epochs}"
        session.progress.step(where, self._images_done(), loss, done / seconds if seconds else 0.0)

    def _images_per_epoch(self) -> int:
        return len(self.session.train_batches) * self.session.config.images_per_step

    def _images_done(self) -> int:
        return self.state.epoch * self._images_per_epoch() + self.state.step * self.session.config.images_per_step

    def _warm_up(self) -> None:
        """Compile before the clock starts; where that fails and was not asked for, go on without."""
        session = self.session
        if not session.config.compile:
            return
        session.note("compiling the network: about a minute without progress")
        buffers = {name: value.clone() for name, value in session.network.named_buffers()}
        try:
            self._try_both_modes()
        except torch.OutOfMemoryError:
            raise
        except Exception as err:
            inner = getattr(err, "inner_exception", err)  # what torch.compile's own exceptions wrap
            cause = f"{type(inner).__name__}: {inner}".splitlines()[0]
            if not session.compile_was_chosen:
                raise UserError(f"--compile failed: {cause}. Use --no-compile; --debug shows more.") from err
            session.note(f"torch.compile failed, going on without it: {cause}")
            session.give_up_compiling()
            if session.is_main:
                session.folder.write_text("config.yaml", session.config.to_yaml())
        finally:
            session.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, value in session.network.named_buffers():
                    value.copy_(buffers[name])

    def _try_both_modes(self) -> None:
        session = self.session
        session.begin_epoch(self.state.epoch)
        batch = session.train_batches.batch(0, 0)
        Step(session, torch.zeros_like(self.state.sums)).add_gradients(
            batch.images, batch.labels, batch.targets, 1, last=True
        )
        session.answering.eval()
        with torch.no_grad():
            session.answering(next(iter(session.evaluation_batches("test").in_order())).images)


def _tell_need(session: Session, limit: TimeLimit | None, seconds: float) -> None:
    """Tell whoever limits the time how long stopping and saving would take."""
    if limit is not None:
        limit.need(seconds)
    session.progress.need(seconds)


def _passed(step: int, steps: int, every: int) -> bool:
    """Return True if a multiple of ``every`` is among the last ``steps`` numbers up to ``step``."""
    return step // every > (step - steps) // every


def _gather(session: Session) -> Callable[[Tensor], Tensor] | None:
    accelerator = session.accelerator
    if accelerator.num_processes == 1:
        return None

    def gather(rows: Tensor) -> Tensor:
        padded = accelerator.pad_across_processes(rows.to(accelerator.device), dim=0, pad_index=-1)
        return accelerator.gather(padded)

    return gather


def _nan_or_inf(value: Tensor) -> str:
    return "NaN" if bool(value.isnan()) else "infinite"


def _open(config: TrainConfig, progress: QuietProgress) -> PackedDataset:
    return prepare(config.data, image_size=config.image_size, max_bad=config.max_bad, progress=progress.preparing)


def _resumed(config: TrainConfig, machine_settings: dict[str, Any], added: Mapping[str, Any]) -> TrainConfig:
    """Change what may change when a run goes on; on another kind of device, its choices are made anew."""
    wrong = set(machine_settings) - set(MACHINE_SETTINGS)
    if added["epochs"] is None:
        wrong |= {name for name, value in added.items() if value is not None}
    if wrong:
        raise UserError(f"{', '.join(sorted(wrong))}: a resumed run keeps its settings.")
    device = machine_settings.get("device", config.device)
    if device.partition(":")[0] != config.device.partition(":")[0]:
        config = replace(config, precision="auto", compile="auto", graph="auto", channels_last="auto")
    elif config.graph is True:
        config = replace(config, graph="auto")  # which is not known any more; there may be several processes now
    return replace(config, **machine_settings)


def _note_threads(session: Session, folder: RunFolder) -> None:
    before = folder.read_json("environment.json").get("threads")
    if before != torch.get_num_threads():
        session.note(
            f"the run began with {before} threads and goes on with {torch.get_num_threads()}: sums are "
            "rounded differently, so the weights will not be bit-identical to an uninterrupted run's"
        )


def _not_deterministic(said: str) -> UserError:
    if "CUBLAS_WORKSPACE_CONFIG" in said:
        return UserError(
            "--deterministic: this process has used the GPU before, without it. Start a new one, or Python with "
            "CUBLAS_WORKSPACE_CONFIG=:4096:8 in its environment."
        )
    return UserError(f"--deterministic: {said.partition(', but')[0]}. Use --no-deterministic.")


def _out_of_memory(session: Session, err: Exception) -> UserError:
    batch, cause = session.config.images_per_step, first_line_of(err)
    graphs = " CUDA graphs hold memory of their own: --no-graph needs less." if session.config.graph else ""
    return UserError(
        f"{session.config.device} ran out of memory with --batch-size {batch}. Try --batch-size "
        f"{max(batch // 2, 2)}, with a --lr as much smaller, in a new run.{graphs} ({cause})"
    )
