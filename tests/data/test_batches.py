"""Batches against an oracle that crops, mirrors and normalises one image at a time, and searches for the draw."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2.functional import resized_crop

from csham.data.batches import Batches
from csham.data.crops import draw_boxes
from csham.data.dataset import PackedDataset, stored_side
from csham.data.mixing import mixed
from csham.data.policies import augmented, find_policy
from csham.data.split import generator
from csham.errors import UserError

CROP_SALT, POLICY_SALT, MIX_SALT = 0xC509, 0xA067, 0x3175  # as they always were: runs go on with what they drew
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]


def dataset_of(count, image_size, seed=0, flip=True):
    rng = np.random.default_rng(seed)
    P = stored_side(image_size)
    images = rng.integers(0, 256, (count, P, P, 3), dtype=np.uint8)
    images.flags.writeable = False  # as the memory map is
    return PackedDataset(
        name="noise",
        source="noise",
        classes=("a", "b", "c"),
        image_size=image_size,
        images=images,
        labels=rng.integers(0, 3, count),
        parts=np.zeros(count, np.uint8),
        sums=np.zeros((count, 3, 2), np.int64),
        path=Path("nowhere"),
        flip=flip,
    )


def batches_of(dataset, indices=None, **settings):
    """Batches that are cut without resampling, unless asked for otherwise: their draws can be searched for."""
    indices = np.arange(len(dataset)) if indices is None else indices
    defaults = {"batch_size": 8, "seed": 0, "mean": MEAN, "std": STD, "augment": True, "crop": "pad"}
    return Batches(dataset, indices, **{**defaults, **settings})


def bytes_of(images):
    """Undo the normalisation: (B, 3, S, S) float32 to (B, S, S, 3) uint8, checked to be whole numbers."""
    values = (images.permute(0, 2, 3, 1).double() * torch.tensor(STD) + torch.tensor(MEAN)) * 255
    assert (values - values.round()).abs().max() < 1e-2  # float32 at 255: 3e-5, times a few operations
    return values.round().numpy().astype(np.uint8)


def canvas_of(dataset, row):
    """What crops are cut from: the image in a black border, or the larger stored image."""
    image, S = dataset.images[row], dataset.image_size
    if S > 64:
        return image
    pad = S // 8
    canvas = np.zeros((S + 2 * pad, S + 2 * pad, 3), np.uint8)
    canvas[pad : pad + S, pad : pad + S] = image
    return canvas


def draw_of(dataset, row, pixels):
    """The one (top, left, mirrored) that makes ``pixels`` of image ``row``; fails if there is none."""
    canvas, S = canvas_of(dataset, row), dataset.image_size
    found = []
    for top in range(len(canvas) - S + 1):
        for left in range(len(canvas) - S + 1):
            crop = canvas[top : top + S, left : left + S]
            found += [(top, left, False)] if (crop == pixels).all() else []
            found += [(top, left, True)] if (crop[:, ::-1] == pixels).all() else []
    assert len(found) == 1, f"image {row}: {len(found)} crops match"
    return found[0]


def equal(one, two):
    return (
        torch.equal(one.images, two.images)
        and torch.equal(one.labels, two.labels)
        and one.count == two.count
        and np.array_equal(one.indices, two.indices)
    )


# 8: border of 1; 20: border of 2, S not a multiple of 8; 64: last with a border; 72: cut from 82
@pytest.mark.parametrize("image_size", [8, 20, 64, 72])
def test_every_image_is_one_crop_of_itself_with_its_own_draw(image_size):
    dataset = dataset_of(24, image_size)
    batch = batches_of(dataset, batch_size=12).batch(0, 1)
    assert batch.images.shape == (12, 3, image_size, image_size)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == torch.int64
    np.testing.assert_array_equal(batch.labels, dataset.labels[batch.indices])
    pixels = bytes_of(batch.images)
    draws = {draw_of(dataset, row, image) for row, image in zip(batch.indices, pixels, strict=True)}
    assert len(draws) > 4


def test_every_crop_and_both_directions_come_up():
    dataset = dataset_of(64, 16)
    batches = batches_of(dataset, batch_size=64)
    draws = []
    for epoch in range(6):
        batch = batches.batch(epoch, 0)
        draws += [draw_of(dataset, row, p) for row, p in zip(batch.indices, bytes_of(batch.images), strict=True)]
    top, left, mirrored = (np.array(values) for values in zip(*draws, strict=True))
    assert set(top) == set(left) == set(range(5))
    assert 0.4 < mirrored.mean() < 0.6  # 384 draws: four standard deviations are 0.1
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.2


def test_digits_are_not_mirrored():
    dataset = dataset_of(32, 8, flip=False)
    batch = batches_of(dataset, batch_size=32).batch(0, 0)
    pairs = zip(batch.indices, bytes_of(batch.images), strict=True)
    assert not any(draw_of(dataset, row, pixels)[2] for row, pixels in pairs)
    mirrored = batches_of(dataset, batch_size=32, flip=True).batch(0, 0)
    assert not torch.equal(mirrored.images, batch.images)


@pytest.mark.parametrize("image_size", [8, 72])
def test_without_augmentation_the_centre(image_size):
    dataset = dataset_of(16, image_size)
    edge = (stored_side(image_size) - image_size) // 2
    batch = batches_of(dataset, augment=False).batch(0, 0)
    centre = slice(edge, edge + image_size)
    np.testing.assert_array_equal(bytes_of(batch.images), dataset.images[batch.indices][:, centre, centre])


def test_normalised_as_the_formula_says():
    dataset = dataset_of(8, 8)
    batch = next(batches_of(dataset, augment=False).in_order())
    expected = (dataset.images.astype(np.float64) / 255 - MEAN) / STD
    np.testing.assert_allclose(batch.images.permute(0, 2, 3, 1), expected, atol=2e-6)  # float32 near 4


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_shows_each_image_at_most_once(count, batch_size, seed, epoch):
    dataset = dataset_of(50, 8)
    indices = np.random.default_rng(count).choice(50, count, replace=False)
    batches = batches_of(dataset, indices, batch_size=batch_size, seed=seed, augment=False)
    assert len(batches) == count // batch_size
    if count < batch_size:
        with pytest.raises(UserError):
            batches.epoch(epoch)
        return
    shown = np.concatenate([batch.indices for batch in batches.epoch(epoch)])
    assert len(shown) == len(batches) * batch_size
    assert len(set(shown)) == len(shown)
    assert set(shown) <= set(indices)


@given(count=st.integers(1, 40), batch_size=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_a_filled_epoch_shows_every_image_and_none_twice_in_a_batch(count, batch_size, seed):
    dataset = dataset_of(50, 8)
    indices = np.random.default_rng(count).choice(50, count, replace=False)
    settings = {"batch_size": batch_size, "seed": seed, "augment": False}
    batches = batches_of(dataset, indices, last_batch="fill", **settings)
    if count < batch_size:
        with pytest.raises(UserError):
            batches.epoch(0)
        return
    shown = [batch.indices for batch in batches.epoch(3)]
    assert all(len(set(rows)) == len(rows) == batch_size for rows in shown)
    assert set(np.concatenate(shown)) == set(indices)
    assert len(batches) == len(shown) == -(-count // batch_size)
    dropping = [batch.indices for batch in batches_of(dataset, indices, **settings).epoch(3)]
    np.testing.assert_array_equal(dropping, shown[: len(dropping)])  # the batches before the last are the same


def test_a_filled_batch_is_the_same_in_slices():
    dataset = dataset_of(20, 16)
    whole = batches_of(dataset, last_batch="fill").batch(1, 2)
    parts = [batches_of(dataset, last_batch="fill", rank=rank, world_size=2).batch(1, 2) for rank in range(2)]
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    np.testing.assert_array_equal(whole.indices, np.concatenate([part.indices for part in parts]))


def test_orders_differ_between_epochs_and_seeds():
    dataset = dataset_of(64, 8)
    orders = [
        tuple(np.concatenate([batch.indices for batch in batches_of(dataset, seed=seed).epoch(epoch)]))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


@settings(max_examples=15)
@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 2**31), index=st.integers(0, 4))
def test_a_batch_is_a_function_of_seed_epoch_and_index(seed, epoch, index):
    dataset = dataset_of(40, 8)
    for crop in ("pad", "resized"):
        in_sequence = list(batches_of(dataset, seed=seed, crop=crop).epoch(epoch))
        torch.manual_seed(int(seed % 1000))
        np.random.seed(1)
        assert equal(batches_of(dataset, seed=seed, crop=crop).batch(epoch, index), in_sequence[index])


def test_threads_make_the_same_batches():
    """As a loop does that makes the next batches while the network trains."""
    dataset = dataset_of(160, 72)
    batches = batches_of(dataset, crop="resized")
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda place: batches.batch(*place), [(e, k) for e in range(2) for k in range(20)]))
    alone = [batch for epoch in range(2) for batch in batches_of(dataset, crop="resized").epoch(epoch)]
    assert all(equal(one, two) for one, two in zip(together, alone, strict=True))


def test_start_resumes():
    dataset = dataset_of(40, 8)
    whole = list(batches_of(dataset).epoch(3))
    rest = list(batches_of(dataset).epoch(3, start=2))
    assert len(rest) == len(whole) - 2
    assert all(equal(one, two) for one, two in zip(rest, whole[2:], strict=True))
    assert list(batches_of(dataset).epoch(3, start=5)) == []


@pytest.mark.long
@pytest.mark.slow
def test_another_process_draws_the_same(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_batches import batches_of, dataset_of
print(float(batches_of(dataset_of(40, 8), seed=7).batch(2, 3).images.double().sum()))
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert float(said) == float(batches_of(dataset_of(40, 8), seed=7).batch(2, 3).images.double().sum())


# Frozen: a change of the draws would make every older run impossible to repeat or resume.
def test_the_draws_stay_what_they_are():
    dataset = dataset_of(40, 8)
    batch = batches_of(dataset, seed=7).batch(2, 3)
    assert batch.indices.tolist() == FROZEN_ROWS
    draws = [draw_of(dataset, row, p) for row, p in zip(batch.indices, bytes_of(batch.images), strict=True)]
    assert draws == FROZEN_DRAWS


FROZEN_ROWS = [33, 23, 38, 2, 35, 12, 16, 22]
FROZEN_DRAWS = [
    (2, 2, False),
    (1, 2, True),
    (2, 1, True),
    (1, 0, False),
    (0, 0, False),
    (2, 0, True),
    (2, 1, True),
    (1, 2, True),
]


@pytest.mark.parametrize("image_size", [16, 72])
def test_resized_crops_are_boxes_of_the_stored_square(image_size):
    """Drawn anew and cut by torchvision, one image at a time, from (seed, epoch, batch) alone."""
    dataset = dataset_of(24, image_size)
    batch = batches_of(dataset, batch_size=12, seed=5, crop="resized", crop_scale=0.2).batch(2, 1)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    side = dataset.images.shape[1]
    rng = generator(5, 2, 1, CROP_SALT)
    boxes, mirrored = draw_boxes(rng, 12, side, 0.2), rng.random(12) < 0.5
    assert 0 < mirrored.sum() < 12
    for row, box, flip, pixels in zip(batch.indices, boxes.tolist(), mirrored, bytes_of(batch.images), strict=True):
        image = torch.from_numpy(dataset.images[row].copy()).permute(2, 0, 1)
        expected = resized_crop(image, *box, [image_size, image_size], antialias=True)
        expected = (expected.flip(-1) if flip else expected).permute(1, 2, 0).numpy()
        assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_the_way_of_cropping_changes_neither_the_order_nor_evaluation():
    dataset = dataset_of(40, 72)
    padded, resized = (batches_of(dataset, crop=crop) for crop in ("pad", "auto"))
    assert resized.crop == "resized"
    one, two = padded.batch(1, 2), resized.batch(1, 2)
    assert np.array_equal(one.indices, two.indices)
    assert not torch.equal(one.images, two.images)
    assert all(equal(a, b) for a, b in zip(padded.in_order(), resized.in_order(), strict=True))


def test_no_mirrored_box_where_images_may_not_be_mirrored():
    pixels = np.zeros((1, 82, 82, 3), np.uint8)
    pixels[:, :, 41:] = 255  # dark on the left of any box that holds both
    dataset = replace(dataset_of(1, 72, flip=False), images=np.repeat(pixels, 16, 0), labels=np.zeros(16, np.int64))
    images = batches_of(dataset, batch_size=16, crop="resized").batch(0, 0).images
    assert (images[..., 0].mean((1, 2)) < images[..., -1].mean((1, 2))).all()


CROPS = [(16, "pad"), (72, "pad"), (72, "resized")]


@pytest.mark.parametrize(("image_size", "crop"), CROPS)
@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_a_policy_changes_what_was_cut_by_draws_of_the_batch(image_size, crop, policy):
    dataset = dataset_of(24, image_size)
    plain, changed = (batches_of(dataset, batch_size=12, seed=5, crop=crop, policy=name) for name in ("none", policy))
    cut = torch.from_numpy(bytes_of(plain.batch(2, 1).images))
    draws = find_policy(policy).draw(generator(5, 2, 1, POLICY_SALT), 12)
    batch = changed.batch(2, 1)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(bytes_of(batch.images), augmented(cut, draws, find_policy(policy)))
    assert equal(next(plain.in_order()), next(changed.in_order()))


def test_runs_of_other_versions_drew_the_same():
    padded, resized = batches_of(dataset_of(24, 16), batch_size=4, seed=5), dataset_of(24, 72)
    assert padded.draw(2, 1).tolist() == [[10, 0, 3, 0], [13, 4, 1, 1], [20, 0, 0, 0], [14, 1, 1, 1]]
    assert batches_of(resized, batch_size=4, seed=5, crop="resized").draw(2, 1).tolist() == [
        [10, 4, 3, 77, 70, 0], [13, 13, 24, 55, 44, 1], [20, 23, 6, 55, 69, 0], [14, 5, 13, 76, 58, 0],
    ]  # fmt: skip
    assert [find_policy(name).draw(generator(5, 2, 1, POLICY_SALT), 4).tolist() for name in ("trivial", "rand")] == [
        [[[9, 12]], [[10, -14]], [[13, 18]], [[1, -22]]],
        [[[9, 9], [10, -9]], [[13, 9], [1, -9]], [[5, -9], [6, -9]], [[8, 9], [10, -9]]],
    ]
    images, labels = torch.arange(2.0)[:, None, None, None].expand(2, 3, 6, 6), torch.arange(2)
    _, shares = mixed(images.clone(), labels, 2, mixup=1.0, cutmix=0.0, rng=generator(5, 2, 1, MIX_SALT))
    assert shares[0].tolist() == pytest.approx([0.0419668, 0.9580332], abs=1e-6)
    pasted, _ = mixed(images.clone(), labels, 2, mixup=0.0, cutmix=1.0, rng=generator(5, 2, 1, MIX_SALT))
    assert pasted[0, 0].nonzero()[0].tolist() == [0, 1]  # where the box ends depends on timm's version


@pytest.mark.parametrize("alphas", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_a_mixed_batch_is_the_batch_mixed_by_draws_of_its_own(alphas):
    dataset = dataset_of(24, 16)
    plain, mixing = batches_of(dataset, seed=5), batches_of(dataset, seed=5, **alphas)
    expected, batch = plain.batch(2, 1), mixing.batch(2, 1)
    assert expected.targets is None
    rng = generator(5, 2, 1, MIX_SALT)
    images, targets = mixed(expected.images, expected.labels, 3, **{"mixup": 0.0, "cutmix": 0.0} | alphas, rng=rng)
    assert torch.equal(batch.images, images)
    assert torch.equal(batch.targets, targets)
    assert torch.equal(batch.labels, targets.argmax(1))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(batch.indices, expected.indices)
    assert equal(next(plain.in_order()), next(mixing.in_order()))


@pytest.mark.parametrize(("image_size", "crop"), CROPS)
def test_what_the_ranks_mix_is_what_one_process_mixes(image_size, crop):
    dataset = dataset_of(24, image_size)
    given = {"batch_size": 12, "crop": crop, "policy": "trivial", "mixup": 1.0, "cutmix": 1.0}
    for index in range(2):
        whole = batches_of(dataset, **given).batch(1, index)
        parts = [batches_of(dataset, rank=rank, world_size=3, **given).batch(1, index) for rank in range(3)]
        places = [np.flatnonzero(whole.indices == row)[0] for part in parts for row in part.indices]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images[places])
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets[places])
        assert sorted(places) == list(range(12))


@pytest.mark.parametrize(("image_size", "crop"), [(8, "pad"), (72, "resized")])
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_slices_are_the_batch(world_size, image_size, crop):
    dataset = dataset_of(21, image_size)
    whole = batches_of(dataset, crop=crop)
    ranks = [batches_of(dataset, rank=rank, world_size=world_size, crop=crop) for rank in range(world_size)]
    for index in range(len(whole)):
        parts = [rank.batch(1, index) for rank in ranks]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.batch(1, index).images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.batch(1, index).labels)
    for together, *parts in zip(whole.in_order(), *(rank.in_order() for rank in ranks), strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), together.images)
        assert sum(part.count for part in parts) == together.count


@given(count=st.integers(0, 30), batch_size=st.integers(1, 12), world_size=st.integers(1, 3))
def test_in_order_shows_each_image_once(count, batch_size, world_size):
    dataset = dataset_of(30, 8)
    indices = np.random.default_rng(count).permutation(30)[:count]
    seen = []
    ranks = [
        batches_of(
            dataset, indices, batch_size=batch_size * world_size, augment=False, rank=rank, world_size=world_size
        ).in_order()
        for rank in range(world_size)
    ]
    for parts in zip(*ranks, strict=True):
        for part in parts:
            assert part.images.shape == (batch_size, 3, 8, 8)
            np.testing.assert_array_equal(bytes_of(part.images), dataset.images[part.indices])
            seen += part.indices[: part.count].tolist()
    assert seen == indices.tolist()


def test_too_few_images():
    with pytest.raises(UserError, match=r"5 training images .* batch of 8.*--batch-size 5 or less"):
        batches_of(dataset_of(5, 8))
    assert len(list(batches_of(dataset_of(5, 8), augment=False).in_order())) == 1


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (-4, 1), (8, 3)])
def test_a_batch_that_cannot_be_divided(batch_size, world_size):
    with pytest.raises(UserError, match=f"multiple of the {world_size} processes, got {batch_size}"):
        batches_of(dataset_of(16, 8), batch_size=batch_size, world_size=world_size)


@pytest.mark.parametrize("index", [-1, 5])
def test_no_such_batch(index):
    with pytest.raises(IndexError, match="batches 0 to 4"):
        batches_of(dataset_of(40, 8)).batch(0, index)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(("image_size", "crop"), CROPS)
def test_the_gpu_makes_the_same_batches(image_size, crop, resident, monkeypatch):
    dataset = dataset_of(40, image_size)
    if not resident:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    on_gpu = batches_of(dataset, device="cuda", crop=crop)
    assert bool(dataset.resident) is resident
    for here, there in zip(batches_of(dataset, crop=crop).epoch(1), on_gpu.epoch(1), strict=True):
        assert there.images.device.type == there.labels.device.type == "cuda"
        assert there.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(there.images.cpu(), here.images, rtol=0, atol=2e-6)  # one fused operation
        assert torch.equal(there.labels.cpu(), here.labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_the_gpu_changes_and_mixes_by_the_same_draws(policy):
    dataset, given = dataset_of(64, 32), {"batch_size": 64, "policy": policy, "mixup": 1.0, "cutmix": 1.0}
    here, there = (batches_of(dataset, device=device, **given).batch(0, 0) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.targets.cpu(), here.targets)
    assert torch.equal(there.labels.cpu(), here.labels)
    # Turned images take the nearest pixel, which rounding may make another; other draws would change most pixels.
    assert ((there.images.cpu() - here.images).abs() < 0.05).float().mean() > 0.9
