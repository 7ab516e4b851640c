"""Image files through a trained network: read ahead in threads, asked a batch at a time, answered in order."""

from __future__ import annotations

import os
import queue
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from csham.data.decode import BadFile, image_formats, reason
from csham.errors import UserError, first_line_of, unknown_name
from csham.inference.modules import ModuleFacts
from csham.inference.trained import Trained, as_trained
from csham.inference.transform import UnreadableImageError
from csham.probing import evaluating
from csham.training.evaluation import autocast, averaged, on_this_machine
from csham.training.machine import choose_precision
from csham.training.run_folder import RunFolder

__all__ = ["NotSure", "Prediction", "check_threshold", "predict"]

# A source of paths that is silent for so long gets its answers without the batch being full.
_PAUSE_SECONDS = 0.1
_MOST_THREADS = 8


class Prediction(NamedTuple):
    """The most probable classes of one image.

    Attributes:
        path: The image, as it was named.
        classes: Names of the classes, the most probable first.
        probabilities: Of each of them, 0 to 1.
    """

    path: str
    classes: list[str]
    probabilities: list[float]

    @property
    def sure(self) -> bool:
        """True unless a threshold was given that the most probable class does not reach."""
        return True


class NotSure(Prediction):
    """Classes of an image none of which is probable enough to be its answer."""

    __slots__ = ()

    @property
    def sure(self) -> bool:
        """False."""
        return False


def predict(
    trained: Trained | nn.Module,
    paths: Iterable[str | Path],
    *,
    top_k: int = 5,
    batch_size: int = 64,
    precision: str | None = None,
    tta: bool = False,
    threshold: float | None = None,
    **module: Unpack[ModuleFacts],
) -> Iterator[Prediction | BadFile]:
    """Ask a trained network about any number of image files, in constant memory.

    The next batch is decoded in threads while the network works on one; ``paths`` is consumed in a thread of its own,
    at most ``2 * batch_size + 17`` images ahead of what was taken. Where it pauses, as a pipe may, the images so far
    are answered at once. On CPU and CUDA the network's weights are laid out channels_last, as for evaluation.

    Args:
        trained: Network that :func:`csham.load` returned, or any module that classifies images.
        paths: Image files, whatever they are called.
        top_k: Classes for each image; all where there are fewer.
        batch_size: Images the network gets at a time.
        precision: ``"fp32"``, ``"bf16"``, ``"fp16"``, or ``"auto"``, what the device is fastest in. By default that of
            the run, as :func:`csham.training.evaluate` takes it, and ``"fp32"`` for weights without a run: a module
            computes in its own type then.
        tta: Average the probabilities of several views of each image (:attr:`csham.inference.Trained.views`).
        threshold: Least probability of the first class; an image that does not reach it gives a :class:`NotSure`.
        **module: Of a module, what it does not say itself: ``image_size``, ``classes``, ``mean`` and ``std``; see
            :meth:`csham.Trained.of`.

    Returns:
        For each path in order its answer, or :class:`csham.data.BadFile` with the reason why it cannot be read.

    Raises:
        UserError: Settings that cannot work, too little memory for a batch, or an answer that is not finite.

    Examples:
        >>> for result in predict(csham.load("runs/..."), Path("photos").rglob("*.jpg")):
        ...     print(result.path, result.classes[0] if isinstance(result, Prediction) else result.reason)
    """
    if isinstance(paths, str | Path):
        raise UserError(f"predict takes several paths, got one: [{str(paths)!r}] is a list of one.")
    for name, value in {"top_k": top_k, "batch_size": batch_size}.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")
    if threshold is not None:
        check_threshold(threshold)
    trained = as_trained(trained, module)
    precision = _precision(trained, precision)
    network = trained.network
    if trained.path is not None and trained.device.type in ("cpu", "cuda"):
        network.to(memory_format=torch.channels_last)
    ask = averaged(network, trained.views) if tta else network
    decode = trained.transform.square if tta else trained.transform.pixels
    question = _Question(trained, ask, min(top_k, len(trained.classes)), precision, threshold or 0.0)
    return _predict(question, _Reader(paths, decode, batch_size))


def check_threshold(threshold: float) -> None:
    """Refuse what is no probability.

    Raises:
        UserError: It is not above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        percent = f" For {threshold:g}% write {threshold / 100:g}." if 1 < threshold <= 100 else ""
        raise UserError(f"the threshold is a probability, above 0 and at most 1, got {threshold:g}.{percent}")


class _Question(NamedTuple):
    """What is asked of every image.

    Attributes:
        trained: The network, with its classes.
        ask: From images, normalised, to logits.
        top_k: Classes for each image.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        threshold: Least probability of a first class.
    """

    trained: Trained
    ask: Callable[[Tensor], Tensor]
    top_k: int
    precision: str
    threshold: float


def _predict(question: _Question, reader: _Reader) -> Iterator[Prediction | BadFile]:
    try:
        for batch in reader.batches():
            yield from _answers(question, batch)
    finally:
        reader.close()


def _precision(trained: Trained, asked: str | None) -> str:
    known = ("auto", "fp32", "bf16", "fp16")
    if asked is not None and asked not in known:
        raise unknown_name("precision", asked, known)
    if asked is not None:
        return choose_precision(asked, str(trained.device))[0]
    run = None if trained.path is None else RunFolder(trained.path)
    if run is None or not run.config_file.is_file():
        return "fp32"
    return on_this_machine(run.read_config(), str(trained.device)).precision


class _Read(NamedTuple):
    """A file that was read: the pixels of what is asked about, (S, S, 3) uint8, or why there are none."""

    path: str
    pixels: np.ndarray | None
    bad: BadFile | None


def _answers(question: _Question, batch: list[_Read]) -> list[Prediction | BadFile]:
    """Answer a batch: one result for each file, in order."""
    pixels = [read.pixels for read in batch if read.pixels is not None]
    answers = iter(_most_probable(question, pixels) if pixels else ())
    names = question.trained.classes
    results: list[Prediction | BadFile] = []
    for path, _, bad in batch:
        if bad is not None:
            results.append(bad)
        else:
            indices, probabilities = next(answers)
            kind = Prediction if probabilities[0] >= question.threshold else NotSure
            results.append(kind(path, [names[index] for index in indices], probabilities))
    return results


def _most_probable(question: _Question, pixels: list[np.ndarray]) -> list[tuple[list[int], list[float]]]:
    """Return class numbers and probabilities for each of B images, the most probable class first."""
    trained = question.trained
    try:
        logits = _logits(question, pixels)
    except torch.OutOfMemoryError as err:
        cause = first_line_of(err)
        raise UserError(
            f"{trained.device} ran out of memory with batches of {len(pixels)} images. Choose a batch size of "
            f"{max(len(pixels) // 2, 1)}. ({cause})"
        ) from err
    if not logits.isfinite().all():
        raise UserError(
            f"{trained.origin} answers with numbers that are not finite, in {question.precision}. Either its "
            f"{trained.weights} weights are damaged or the precision does not suffice: try fp32."
        )
    indices = logits.topk(question.top_k, dim=1).indices  # of the logits, which differ where probabilities are both 0
    return list(zip(indices.tolist(), logits.softmax(1).gather(1, indices).tolist(), strict=True))


@torch.no_grad()
def _logits(question: _Question, pixels: list[np.ndarray]) -> Tensor:
    """Ask the network about B images: (B, classes) float32, on the CPU."""
    trained = question.trained
    images = trained.transform.normalise(torch.from_numpy(np.stack(pixels)).to(trained.device)).to(trained.dtype)
    with autocast(str(trained.device), question.precision), evaluating(trained.network):
        logits = question.ask(images)
    return logits.float().cpu()


class _End(NamedTuple):
    """The source of paths has ended, or failed."""

    error: BaseException | None = None


class _Reader:
    """Decodes files in threads and hands them out in order, reading a bounded number of them ahead.

    Threads suffice: Pillow releases the interpreter while it decodes and resizes.
    """

    def __init__(self, paths: Iterable[str | Path], decode: Callable[[str], np.ndarray], batch_size: int) -> None:
        image_formats()  # loads Pillow's plugins here, not in several threads at a time
        self._decode, self._batch_size = decode, batch_size
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="csham-decode")
        self._files: queue.Queue[Future[_Read] | _End] = queue.Queue(max(batch_size, 2 * threads))
        self._closed = threading.Event()
        # A daemon, since a source that waits for a pipe cannot be stopped.
        threading.Thread(target=self._feed, args=(paths,), name="csham-paths", daemon=True).start()

    def batches(self) -> Iterator[list[_Read]]:
        """Batches of files: full ones but for the last, and but for where the source pauses."""
        end = None
        while end is None:
            batch, end = self._collect()
            if batch:
                yield [file.result() for file in batch]
        if end.error is not None:
            raise end.error

    def close(self) -> None:
        """Stop reading; does not wait for a source that does not answer."""
        self._closed.set()
        while not self._files.empty():
            self._files.get_nowait()  # wakes the source's thread where it waits for room
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _collect(self) -> tuple[list[Future[_Read]], _End | None]:
        batch: list[Future[_Read]] = []
        while len(batch) < self._batch_size:
            try:
                file = self._files.get(timeout=_PAUSE_SECONDS if batch else None)
            except queue.Empty:
                break
            if isinstance(file, _End):
                return batch, file
            batch.append(file)
        return batch, None

    def _feed(self, paths: Iterable[str | Path]) -> None:
        end = _End()
        try:
            for path in paths:
                self._files.put(self._pool.submit(self._read, os.fspath(path)))
                if self._closed.is_set():
                    return
        except BaseException as err:  # raised again where the answers are taken
            end = _End(err)
        self._files.put(end)

    def _read(self, path: str) -> _Read:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - Path is slow
                return _Read(path, None, BadFile(path, _irregular(path)))
            return _Read(path, self._decode(path), None)
        except UnreadableImageError as err:
            return _Read(path, None, err.file)
        except Exception as err:  # a path that cannot be: too long, or with a NUL in it
            return _Read(path, None, BadFile(path, reason(path, err)))


def _irregular(path: str) -> str:
    if not os.path.isdir(path):  # noqa: PTH112
        return "not a file but a device or a pipe"
    return "a folder, no image" if os.access(path, os.R_OK | os.X_OK) else "a folder, and no permission to list it"
