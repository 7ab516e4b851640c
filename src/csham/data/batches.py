"""Packed images to augmented batches on the device: batch k of epoch e depends on (seed, e, k) alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from csham.data.crops import check_crop, draw_boxes, resampled
from csham.data.dataset import PackedDataset
from csham.data.mixing import mixed, pairs_of_rank
from csham.data.names import CROP_SCALE, batches_per_epoch
from csham.data.policies import augmented, find_policy
from csham.data.split import generator
from csham.errors import UserError

__all__ = ["Batch", "Batches", "scale_and_shift"]

_ORDER_SALT, _CROP_SALT, _POLICY_SALT, _MIX_SALT = 0x0DE5, 0xC509, 0xA067, 0x3175


class Batch(NamedTuple):
    """Images ready for the network.

    Attributes:
        images: (B, 3, S, S) float32, channels_last, normalised, on the device.
        labels: (B,) int64, on the device; of a mixed image the class that most of it is of.
        count: Number of real images; those after them only fill the batch up.
        indices: (B,) int64, row numbers in the dataset, on the host.
        targets: Share of each class in each image, (B, classes) float32, on the device; None if they are not mixed.
    """

    images: Tensor
    labels: Tensor
    count: int  # type: ignore[assignment]
    indices: np.ndarray
    targets: Tensor | None = None


class Batches:
    """Batches of some of a dataset's images, cut on the device a whole batch at a time.

    Training (:meth:`epoch`, :meth:`batch`): shuffled anew every epoch, batches of one size; ``last_batch`` says what
    becomes of the images left over at its end. With ``augment``, each image gets its own random crop and, where
    ``flip``, is mirrored half the time; then a ``policy`` changes it, and ``mixup`` and ``cutmix`` mix it with another
    of its batch (:mod:`csham.data.policies`, :mod:`csham.data.mixing`). Evaluation (:meth:`in_order`): every image
    once, the centre square. All draws come from ``(seed, epoch, batch)``, whatever the process, the device and the
    generators of torch and numpy.

    Crops are one of

    - ``"pad"``: S x S pixels, up to 64 px from the image with a black border of S // 8, above from the larger
      stored square;
    - ``"resized"``: a box of the stored square (:func:`csham.data.crops.draw_boxes`), resampled to S x S.

    Args:
        dataset: Dataset that :func:`csham.data.prepare` returned.
        indices: Row numbers of the images to use, (n,).
        batch_size: Images per batch over all ranks.
        seed: 0 or more.
        mean: Per channel, in 0..1.
        std: Per channel, in 0..1, above 0.
        augment: True if training batches are cropped and flipped at random.
        crop: ``"pad"``, ``"resized"``, or ``"auto"``: padded up to 64 px, resized above.
        crop_scale: Least area of a resized crop, as a fraction of the stored square's; above 0, at most 1.
        device: Device on which batches are made. On CUDA the dataset is kept there if it takes less than a quarter of
            the free memory.
        rank: This process, 0 to ``world_size - 1``; it gets its contiguous slice of every batch, or its pairs of one
            that is mixed.
        world_size: Number of processes that share each batch.
        flip: True if images may be mirrored; default ``dataset.flip``.
        last_batch: ``"drop"`` leaves an epoch's last images out where they are fewer than a batch, ``"fill"`` adds its
            first ones to them.
        policy: Change of training images beyond crop and flip: ``"none"``, ``"trivial"`` or ``"rand"``.
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of CutMix; 0 is off.

    Raises:
        UserError: Fewer images than a batch with ``augment``, a batch that ``world_size`` does not divide, or no
            such crops or policy.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        indices: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: bool,
        crop: str = "auto",
        crop_scale: float = CROP_SCALE,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        flip: bool | None = None,
        last_batch: str = "drop",
        policy: str = "none",
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"the batch size must be a positive multiple of the {world_size} processes, "
                f"got {batch_size}. Choose another --batch-size."
            )
        self.dataset, self.indices = dataset, np.asarray(indices, dtype=np.int64)
        self.batch_size, self.seed, self.augment = batch_size, seed, augment
        self.flip = dataset.flip if flip is None else flip
        self.last_batch = last_batch
        self.device = torch.device(device)
        self.image_size = dataset.image_size
        self.crop, self.crop_scale = check_crop(crop, crop_scale, self.image_size), crop_scale
        self._stored = dataset.images.shape[1]
        self._pad = self.image_size // 8 if self._stored == self.image_size else 0
        self._local = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._policy, self._alphas = find_policy(policy), {"mixup": mixup, "cutmix": cutmix}
        self._mixes = mixup + cutmix > 0
        self._drawn = pairs_of_rank(batch_size, rank, world_size) if self._mixes else self._local
        self._order: tuple[int, np.ndarray] | None = None
        if augment:
            self._check_enough()
        self._pixels = _resident(dataset, self.device)
        self._resident = self._pixels.device.type == self.device.type
        self._labels = torch.from_numpy(np.array(dataset.labels, dtype=np.int64)).to(self.device)
        # One factor and one offset per byte of a row of pixels: an inner dimension of 3 would not vectorise.
        self._scale, self._shift = map(self._per_row, scale_and_shift(mean, std))

    def __len__(self) -> int:
        """Training batches per epoch."""
        return batches_per_epoch(len(self.indices), self.batch_size, self.last_batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Training batches of one epoch, from batch ``start`` on.

        Raises:
            UserError: Fewer images than a batch.
        """
        self._check_enough()
        return (self.batch(epoch, index) for index in range(start, len(self)))

    def batch(self, epoch: int, index: int) -> Batch:
        """Training batch ``index`` of epoch ``epoch``, both from 0.

        Raises:
            UserError: Fewer images than a batch.
            IndexError: The epoch has no such batch.
        """
        drawn = self.draw(epoch, index)
        sent = self._send(drawn)
        pixels = self._cut(self._gather(drawn[:, 0], sent[:, 0]), sent)
        if self.augment and self._policy is not None:
            draws = self._policy.draw(generator(self.seed, epoch, index, _POLICY_SALT), self.batch_size)
            pixels = augmented(pixels.to(torch.uint8), draws[self._drawn], self._policy)
        batch = self._finish(pixels, sent[:, 0], drawn[:, 0])
        return self._mixed(batch, generator(self.seed, epoch, index, _MIX_SALT)) if self._mixes else batch

    def draw(self, epoch: int, index: int) -> np.ndarray:
        """Return all that a training batch is cut by, of each of its images, (B, k) int64.

        Its row in the dataset; with ``augment`` then top and left of its crop, height and width too where that is
        resized, and 1 if it is mirrored.

        Raises:
            UserError: Fewer images than a batch.
            IndexError: The epoch has no such batch.
        """
        self._check_enough()
        if not 0 <= index < len(self):
            raise IndexError(f"an epoch has batches 0 to {len(self) - 1}, asked for {index}")
        rows = self._epoch_order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        if not self.augment:
            return rows[self._drawn, None]
        # Drawn for the whole batch, then cut: an image's draw does not depend on the number of ranks.
        rng, B = generator(self.seed, epoch, index, _CROP_SALT), self.batch_size
        if self.crop == "resized":
            places = draw_boxes(rng, B, self._stored, self.crop_scale)
        else:
            places = rng.integers(0, self._stored + 2 * self._pad - self.image_size + 1, (B, 2))
        mirrored = (rng.random((B, 1)) < 0.5) & self.flip
        return np.concatenate([rows[:, None], places, mirrored], 1)[self._drawn]

    @property
    def cut_by_draws(self) -> bool:
        """True if :meth:`cut` makes the whole of a training batch."""
        return self._resident and self._policy is None and not self._mixes

    def cut(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels of what :meth:`draw` drew, on the device: a function of tensors alone.

        Args:
            drawn: (B, k) int64, on the device.
        """
        rows = drawn[:, 0]
        return self._normalised(self._cut(self._squares(rows), drawn)), self._labels.index_select(0, rows)

    def shown(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels for evaluation, on the device: a function of tensors alone.

        Args:
            rows: Row numbers, (B,) int64, on the device.
        """
        return self._normalised(self._centre(self._squares(rows))), self._labels.index_select(0, rows)

    def in_order(self, *, whole: bool = False) -> Iterator[Batch]:
        """Evaluation batches: every image once, in the order given, centre squares.

        The last batch is filled up by repeating images, so that shapes never change; ``count`` says how many
        are real, over the ranks together every image once.

        Args:
            whole: Give the whole stored squares, P x P pixels, to cut views from.
        """
        for rows, count in self.rows_in_order():
            sent = self._send(rows)
            pixels = self._gather(rows, sent)
            yield self._finish(pixels if whole else self._centre(pixels), sent, rows, count)

    def rows_in_order(self) -> Iterator[tuple[np.ndarray, int]]:
        """Row numbers of each evaluation batch, (B,) int64, and how many of them are real."""
        for start in range(0, len(self.indices), self.batch_size):
            real = self.indices[start : start + self.batch_size]
            rows = np.resize(real, self.batch_size)[self._local]
            yield rows, min(max(len(real) - self._local.start, 0), len(rows))

    def _check_enough(self) -> None:
        if len(self.indices) < self.batch_size:
            raise UserError(
                f"{len(self.indices)} training images are fewer than one batch of {self.batch_size}. "
                f"Choose --batch-size {max(1, len(self.indices))} or less, or leave it out."
            )

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            order = generator(self.seed, epoch, _ORDER_SALT).permutation(len(self.indices))
            # Begun again from its start where the last batch needs more.
            self._order = epoch, np.resize(self.indices[order], len(self) * self.batch_size)
        return self._order[1]

    def _gather(self, rows: np.ndarray, sent: Tensor) -> Tensor:
        """Stored squares of these images, on the device: (B, P, P, 3) uint8."""
        if self._resident:
            return self._squares(sent)
        return self._send(self._pixels.index_select(0, torch.from_numpy(rows))).view(-1, self._stored, self._stored, 3)

    def _squares(self, rows: Tensor) -> Tensor:
        return self._pixels.index_select(0, rows).view(-1, self._stored, self._stored, 3)

    def _cut(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Cut each image by its own draw: (B, P, P, 3) uint8 to (B, S, S, 3), uint8 or whole float32."""
        if not self.augment:
            return self._centre(pixels)
        if self.crop == "resized":
            return resampled(pixels, drawn[:, 1:-1], drawn[:, -1].bool(), self.image_size)
        return self._shifted(pixels, drawn)

    def _shifted(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Crop at corners and flip: (B, P, P, 3) to (B, S, S, 3), uint8."""
        S, pad = self.image_size, self._pad
        pixels = F.pad(pixels, (0, 0, pad, pad, pad, pad)) if pad else pixels
        B, side = pixels.shape[:2]
        first_rows, row_bytes = self._steps_in_crops
        y = drawn[:, 1:2] + first_rows
        x = 3 * drawn[:, 2:3] + row_bytes.index_select(0, drawn[:, 3])
        # Rows first, as whole copies; then bytes within rows, by a short index that an image's rows share.
        taken = pixels.view(B * side, side * 3).index_select(0, y.flatten()).view(B, S, side * 3)
        return taken.gather(2, x.view(B, 1, S * 3).expand(B, S, S * 3)).view(B, S, S, 3)

    @cached_property
    def _steps_in_crops(self) -> tuple[Tensor, Tensor]:
        """Rows of each image's crop, (B, S), and bytes of a row of it, plain and mirrored, (2, S * 3), from its corner.

        Of a whole batch's images below each other; kept, since each small operation counts on a GPU.
        """
        S, side = self.image_size, self._stored + 2 * self._pad
        along, images = np.arange(S), np.arange(len(np.arange(self.batch_size)[self._drawn]))
        columns = np.stack([along, S - 1 - along])
        rows, row_bytes = images[:, None] * side + along, (3 * columns[..., None] + np.arange(3)).reshape(2, S * 3)
        return torch.from_numpy(rows).to(self.device), torch.from_numpy(row_bytes).to(self.device)

    def _centre(self, pixels: Tensor) -> Tensor:
        edge, S = (self._stored - self.image_size) // 2, self.image_size
        return pixels[:, edge : edge + S, edge : edge + S]

    def _finish(self, pixels: Tensor, sent: Tensor, rows: np.ndarray, count: int | None = None) -> Batch:
        labels = self._labels.index_select(0, sent)
        return Batch(self._normalised(pixels), labels, len(rows) if count is None else count, rows)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) whole numbers to (B, 3, S, S) float32, channels_last."""
        S = pixels.shape[1]
        scale, shift = self._scale, self._shift
        if self.image_size != S:  # the stored squares
            scale, shift = (values[:3].repeat(S) for values in (scale, shift))
        normalised = pixels.reshape(-1, S * 3).to(torch.float32).mul_(scale).add_(shift)
        return normalised.view(-1, S, S, 3).permute(0, 3, 1, 2)

    def _mixed(self, batch: Batch, rng: np.random.Generator) -> Batch:
        images, targets = mixed(batch.images, batch.labels, len(self.dataset.classes), rng=rng, **self._alphas)
        return batch._replace(images=images, labels=targets.argmax(1), targets=targets)

    def _per_row(self, values: Tensor) -> Tensor:
        return values.repeat(self.image_size).to(self.device)

    def _send(self, values: np.ndarray | Tensor) -> Tensor:
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # only a copy from pinned memory overlaps with computing
        return tensor.to(self.device, non_blocking=True)


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return factor and offset, (3,) float32, that make normalised values of bytes: ``byte * scale + shift``."""
    spread = torch.tensor(std, dtype=torch.float64)
    shift = -torch.tensor(mean, dtype=torch.float64) / spread
    return (1 / (255 * spread)).to(torch.float32), shift.to(torch.float32)


def _resident(dataset: PackedDataset, device: torch.device) -> Tensor:
    """All pixels as (N, P * P * 3): on the GPU if small against its free memory, else in the map."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the map is read-only: nothing here writes to it
        pixels = torch.from_numpy(dataset.images).view(len(dataset), -1)
    if device.type != "cuda":
        return pixels
    key = str(device)
    if key not in dataset.resident and pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 4:
        dataset.resident[key] = pixels.to(device)
    return dataset.resident.get(key, pixels)
