"""Ways to cut and change training images and to cut an epoch, and how small a resized crop may be."""

from __future__ import annotations

__all__ = ["CROPS", "CROP_SCALE", "LAST_BATCHES", "POLICIES", "batches_per_epoch"]

# "auto" is "pad" up to 64 pixels and "resized" above.
CROPS = ("auto", "pad", "resized")

# Least area. fastai's Imagenette recipe (nbs/examples/train_imagenette.py: 10,000 images, 128 px, from scratch, few
# epochs) has 0.35, where ImageNet's long schedules have 0.08. With 0.35 objects are on average 1.14 times as large in
# training as in evaluation's centre square, with 0.08 they are 1.44 times as large: the gap that Touvron et al.,
# arXiv:1906.06423, show to cost accuracy.
CROP_SCALE = 0.35

# "trivial" is TrivialAugmentWide, "rand" RandAugment.
POLICIES = ("none", "trivial", "rand")

# What becomes of the images left over at an epoch's end.
LAST_BATCHES = ("fill", "drop")


def batches_per_epoch(images: int, batch_size: int, last_batch: str) -> int:
    """Count the batches of an epoch, with ``last_batch`` one of ``LAST_BATCHES``."""
    return images // batch_size if last_batch == "drop" else -(-images // batch_size)
