"""Answers for any number of files: evaluation's, in order, without reading far ahead."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

import csham
from csham.data import BadFile
from csham.data.dataset import stored_side
from csham.data.sources.folder import scan
from csham.data.views import Views
from csham.errors import UserError
from csham.inference import NotSure, Prediction, predict
from csham.training import evaluate
from csham.training.network import NetworkInfo, write_weights


@pytest.fixture(scope="module")
def trained(finished):
    return csham.load(finished)


@pytest.fixture(scope="module")
def files(images):
    return scan(images).paths()


@pytest.mark.parametrize("weights", ["best", "last"])
def test_answers_are_those_of_evaluation(finished, images, files, weights):
    found = evaluate(finished, str(images), weights=weights, part="all", device="cpu").predictions
    expected = {files[row]: top.tolist() for row, top in zip(found.indices, found.top, strict=True)}
    loaded = csham.load(finished, weights=weights)
    results = list(predict(loaded, files, batch_size=7))
    assert [result.path for result in results] == files
    assert {path: [loaded.classes.index(name) for name in names] for path, names, _ in results} == expected


def test_probabilities_are_the_networks(trained, files):
    (result,) = predict(trained, files[:1])
    expected = trained.probabilities(files[:1])[0].sort(descending=True)
    assert result.classes == [trained.classes[index] for index in expected.indices]
    assert result.probabilities == pytest.approx(expected.values.tolist(), rel=1e-5)
    assert sum(result.probabilities) == pytest.approx(1, abs=1e-5)
    (first,) = predict(trained, files[:1], top_k=1)
    assert (first.classes, first.probabilities) == (result.classes[:1], pytest.approx(result.probabilities[:1]))


def test_bf16_answers_are_near_those_of_float32(trained, files):
    exact = {path: dict(zip(names, values, strict=True)) for path, names, values in predict(trained, files)}
    found = {
        path: dict(zip(names, values, strict=True)) for path, names, values in predict(trained, files, precision="bf16")
    }
    assert found != exact
    for path, probabilities in found.items():
        # Roundings to 8 bits in each of 20 layers, so a few hundredths of a logit.
        assert probabilities == pytest.approx(exact[path], abs=0.03)


def test_odd_images_are_answered_and_bad_files_do_not_stop_the_rest(trained, files, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "rotated.jpg", exif=exif)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.quantize(8).save(tmp_path / "palette.png")
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    image.save(tmp_path / "animated.gif", save_all=True, append_images=[image.rotate(90)])
    content = (tmp_path / "rotated.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "self.png").symlink_to("self.png")
    good = ["rotated.jpg", "cmyk.jpg", "palette.png", "sixteen.png", "animated.gif"]
    bad = {
        "truncated.jpg": "truncated",
        "zero.png": "empty file (0 bytes)",
        "text.png": "not an image that Pillow can read",
        "folder.png": "a folder, no image",
        "pipe.png": "not a file but a device or a pipe",
        "self.png": "cannot be read (Too many levels of symbolic links)",
        "nothing.png": "no such file (a broken link?)",
        "x" * 300: "cannot be read (File name too long)",
    }
    names = [name for pair in zip(bad, [*good, *good], strict=False) for name in pair]
    results = dict(zip(names, predict(trained, [tmp_path / name for name in names], batch_size=3), strict=True))
    for name, why in bad.items():
        assert results[name] == BadFile(str(tmp_path / name), why)
    for name in good:
        assert results[name].path == str(tmp_path / name)
        expected = trained.probabilities([tmp_path / name]).max().item()
        assert results[name].probabilities[0] == pytest.approx(expected, rel=1e-5)


def test_a_path_that_cannot_be(trained, files):
    nul, fine = predict(trained, ["a\0b.png", files[0]])
    assert nul.path == "a\0b.png"
    assert "null" in nul.reason
    assert isinstance(fine, Prediction)


def test_only_a_bounded_number_of_files_is_read_ahead(trained, files):
    given, batch_size = 0, 8

    def source():
        nonlocal given
        for _ in range(20):
            for path in files[:10]:
                given += 1
                yield path

    ahead = []
    for taken, _ in enumerate(predict(trained, source(), batch_size=batch_size), 1):
        if taken % 20 == 1:
            time.sleep(0.02)  # a slow reader is not overrun
        ahead.append(given - taken)
    assert (taken, given) == (200, 200)
    assert batch_size < max(ahead) <= 2 * batch_size + 17


def test_leaving_early_stops_the_reading(trained, files):
    given = 0

    def source():
        nonlocal given
        while True:
            given += 1
            yield files[0]

    results = predict(trained, source(), batch_size=2)
    next(results)
    results.close()
    deadline = time.monotonic() + 30
    while any(thread.name.startswith("csham") for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("csham")]
    assert given < 50


def test_a_source_that_pauses_gets_its_answers(trained, files):
    answered = threading.Event()

    def source():
        yield from files[:3]
        assert answered.wait(60), "no answer while the source waits"
        yield files[3]

    results = predict(trained, source(), batch_size=64)
    first = [next(results) for _ in range(3)]
    answered.set()
    assert [result.path for result in [*first, *results]] == files[:4]


def test_what_goes_wrong_in_the_source_comes_after_the_answers_before_it(trained, files):
    def source():
        yield from files[:3]
        raise UserError("the list ends badly")

    results = predict(trained, source(), batch_size=2)
    assert [next(results).path for _ in range(3)] == files[:3]
    with pytest.raises(UserError, match="ends badly"):
        next(results)


def test_no_files_no_answers(trained):
    assert list(predict(trained, [])) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"precision": "fp61"}, "Did you mean 'fp16'"),
        ({"precision": "fp16"}, "needs CUDA"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(trained, given, words):
    with pytest.raises(UserError, match=words):
        predict(trained, ["a.png"], **given)


def test_a_path_alone_is_no_list_of_letters(trained, files):
    with pytest.raises(UserError, match="is a list of one"):
        predict(trained, files[0])


def test_precision_is_the_runs_unless_given(finished, copy_unlisted, files, tmp_path):
    run = copy_unlisted(finished, tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("precision: fp32", "precision: bf16"))

    def used(path, **settings):
        loaded, seen = csham.load(path), []
        loaded.network.register_forward_hook(lambda network, args, logits: seen.append(logits.dtype))
        (result,) = predict(loaded, files[:1], **settings)
        assert sum(result.probabilities) == pytest.approx(1, abs=1e-3)
        return seen[0]

    assert used(run) is torch.bfloat16
    assert used(run, precision="fp32") is torch.float32
    assert used(run / "model.safetensors") is torch.float32


def test_answers_that_are_no_numbers_are_refused(finished, files):
    loaded = csham.load(finished)
    with torch.no_grad():
        next(loaded.network.parameters())[0] = float("nan")
    with pytest.raises(UserError, match=r"not finite, in fp32.*last weights are damaged"):
        list(predict(loaded, files[:2]))


@pytest.mark.parametrize(("said", "cause"), [("CUDA out of memory.\nmore", "CUDA out"), ("", "OutOfMemoryError")])
def test_too_little_memory_names_a_batch_size(finished, files, monkeypatch, said, cause):
    def overflow(images):
        raise torch.OutOfMemoryError(said)

    loaded = csham.load(finished)
    monkeypatch.setattr(loaded.network, "forward", overflow)
    with pytest.raises(UserError, match=rf"batches of 6 images. Choose a batch size of 3. \({cause}"):
        list(predict(loaded, files[:6]))


def test_views_of_the_run_are_averaged(trained, files):
    assert str(trained.views) == "mean probabilities of 2 views: the image and its mirror image"
    pixels = torch.from_numpy(np.stack([trained.transform.pixels(path) for path in files[:5]]))
    with torch.no_grad():
        shares = [trained.network(trained.transform.normalise(one)).softmax(1) for one in (pixels, pixels.flip(2))]
    expected = torch.stack(shares).mean(0)
    torch.testing.assert_close(trained.probabilities(files[:5], tta=True), expected, rtol=1e-4, atol=1e-6)
    for row, result in zip(expected, predict(trained, files[:5], batch_size=2, tta=True), strict=True):
        assert result.probabilities == pytest.approx(row.sort(descending=True).values.tolist(), rel=1e-4)
        assert result.classes == [trained.classes[index] for index in row.argsort(descending=True)]


def weights_of(image_size, path):
    info = NetworkInfo(
        backbone="lenet5", attention="none", strategy="sequential", position="auto", gated=False, num_classes=3,
        image_size=image_size, classes=["ant", "bee", "cow"], mean=[0.5] * 3, std=[0.2] * 3,
    )  # fmt: skip
    write_weights(path, info.build().state_dict(), info)
    return csham.load(path)


def test_above_64_pixels_the_corners_are_views_too(tmp_path):
    trained = weights_of(72, tmp_path / "model.safetensors")
    assert str(trained.views) == "mean probabilities of 5 views: the centre and the four corners"
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    square = trained.transform.square(image)
    assert square.shape == (82, 82, 3)
    np.testing.assert_array_equal(square[5:77, 5:77], trained.transform.pixels(image))
    crops = [square[y : y + 72, x : x + 72] for y, x in ((5, 5), (0, 0), (0, 10), (10, 0), (10, 10))]
    expected = trained.probabilities(crops_as_images(trained, crops)).mean(0)
    torch.testing.assert_close(trained.probabilities([image], tta=True)[0], expected, rtol=1e-4, atol=1e-6)
    ten = Views(72, mirrored=True)
    assert len(ten) == len(list(ten.cut(torch.zeros(1, 3, 82, 82)))) == 10
    assert str(ten).endswith("10 views: the centre and the four corners, each also mirrored")


def crops_as_images(trained, crops):
    """Images of which the network sees just these pixels."""
    side = stored_side(trained.info.image_size)
    edge = (side - len(crops[0])) // 2
    return [np.pad(crop, ((edge, edge), (edge, edge), (0, 0))) for crop in crops]


def test_views_cannot_be_averaged_where_there_is_one(tmp_path, files):
    trained = weights_of(28, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="nothing to average here"):
        predict(trained, files, tta=True)
    with pytest.raises(UserError, match="nothing to average here"):
        trained.probabilities(files[:1], tta=True)


def test_below_a_threshold_an_image_has_no_answer(trained, files):
    plain = list(predict(trained, files))
    threshold = sorted(result.probabilities[0] for result in plain)[len(files) // 2]
    for result, before in zip(predict(trained, files, threshold=threshold), plain, strict=True):
        assert result.sure == (before.probabilities[0] >= threshold)
        assert isinstance(result, NotSure) != result.sure
        assert result == before  # all that is known is still there
    assert {result.sure for result in predict(trained, files, threshold=threshold)} == {True, False}
    assert all(result.sure for result in plain)


@pytest.mark.parametrize(
    ("threshold", "words"), [(0, "got 0."), (-0.1, "above 0"), (60, "For 60% write 0.6"), (float("nan"), "nan")]
)
def test_a_threshold_is_a_probability(trained, threshold, words):
    with pytest.raises(UserError, match=words):
        predict(trained, ["a.png"], threshold=threshold)


MEASURED = """
import resource, sys
from csham.cli import main
assert main(["predict", *sys.argv[1:], "--device", "cpu", "--csv", "--quiet"]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 2**20))
"""


@pytest.mark.slow
@pytest.mark.long
def test_ten_thousand_images_take_the_memory_of_a_thousand(tmp_path, monkeypatch):
    monkeypatch.setenv("CSHAM_KERNELS", "reference")
    info = NetworkInfo(
        backbone="lenet5", attention="none", strategy="sequential", position="auto", gated=False, num_classes=3,
        image_size=96, classes=["ant", "bee", "cow"], mean=[0.5] * 3, std=[0.2] * 3,
    )  # fmt: skip
    write_weights(tmp_path / "model.safetensors", info.build().state_dict(), info)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    peak_mib = {}
    for count in (1_000, 10_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            os.link(tmp_path / "a.jpg", folder / f"{number}.jpg")
        output = tmp_path / f"{count}.csv"
        words = [str(tmp_path / "model.safetensors"), str(folder), "--output", str(output)]
        done = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(output.read_text().splitlines()) == count + 1
        peak_mib[count] = int(done.stdout)
    # Their pixels alone would be 250 MiB more.
    assert peak_mib[10_000] < peak_mib[1_000] + 32, peak_mib
