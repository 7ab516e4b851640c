import json
import signal
import sys

import pytest

from csham.export import exporting
from csham.export.files import session
from csham.inference import load


@pytest.mark.slow
@pytest.mark.long
def test_a_run_with_attention_to_onnx(csham, attended):
    code, out, err = csham("export", attended)
    assert code == 0, err
    path = attended / "export" / "model.onnx"
    assert f"{path}: resnet20 + csham (transfer)" in out
    assert "takes any number of images, of any height and width from 5 pixels on" in out
    assert "top-1 agrees on 100.00% of 12 images" in out
    # nothing of torch's exporter on the terminal
    assert err.splitlines() == [
        "exporting to onnx",
        "checking on 12 images of 16 x 16 pixels",
        "checking on 3 images of 21 x 25 pixels",
        "checking on 3 images of 12 x 13 pixels",
    ]
    assert session(path).get_inputs()[0].shape == ["batch", 3, "height", "width"]
    code, out, err = csham("export", attended)
    assert code == 2
    assert err == f"error: {path} exists already. Name another file, or replace it with --force (force=True).\n"


def test_weights_as_json(csham, finished, tmp_path):
    words = ("export", finished, "--format", "safetensors", "--weights", "last", "--samples", "4", "--quiet", "--json")
    path = tmp_path / "a" / "w.safetensors"
    code, out, err = csham(*words, "--output", path)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["path"], found["format"], found["images"], found["max_error"]) == (str(path), "safetensors", 4, 0)
    assert found["quantized"] is None
    assert load(path).classes == ["ant", "bee", "cow"]
    assert csham(*words, "--output", path)[0] == 2
    assert csham(*words, "--output", path, "--force")[0] == 0


def test_the_ending_of_the_output_names_the_format(csham, finished, tmp_path):
    path = tmp_path / "net.SafeTensors"
    code, out, err = csham("export", finished, "--samples", "4", "--json", "--quiet", "--output", path)
    assert (code, err) == (0, "")
    assert json.loads(out)["format"] == "safetensors"
    code, _, err = csham("export", finished, "--output", tmp_path / "net.bin")
    assert code == 2
    assert "net.bin does not say what to write. Let it end in .onnx, .pt2 or .safetensors, or name" in err


def test_a_folder_gets_the_file_under_its_usual_name(csham, finished, tmp_path):
    words = ("export", finished, "--samples", "4", "--json", "--quiet", "--output", tmp_path, "--format", "safetensors")
    code, out, err = csham(*words)
    assert (code, err) == (0, "")
    assert json.loads(out)["path"] == str(tmp_path / "model.safetensors")
    code, _, err = csham(*words)
    assert code == 2
    assert "model.safetensors exists already" in err


def test_images_of_a_folder_for_a_file_without_its_run(csham, finished, images, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((finished / "model.safetensors").read_bytes())
    words = ("export", path, "--format", "safetensors", "--output", tmp_path / "b.safetensors")
    code, _, err = csham(*words)
    assert code == 2
    assert "belongs to no run folder" in err
    assert "--images FOLDER" in err
    code, out, err = csham(*words, "--images", images, "--samples", 0)
    assert code == 0, err
    assert "100.00% of 60 images" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "onx"], "unknown format 'onx'. Did you mean 'onnx'"),
        (["--weights", "worst"], "unknown weights 'worst'"),
        (["--samples", "-1"], "--samples must be at least 1, or 0 for all"),
        (["--tolerance", "nan"], "--tolerance must be a number of 0 or more"),
        (["--calibration-images", "0"], "--calibration-images must be at least 1"),
        (["--format", "pt2", "--quantize"], "--quantize is for --format onnx"),
        (["--quantize", "--images", "."], "leave --images out"),
        (["digits", "--images", "."], "checked on digits or on the images of --images, not on both"),
        (["--format", "safetensors", "--preprocessing"], "holds weights, no graph"),
    ],
)
def test_wrong_options_are_said_before_torch_is_asked(words, message, csham, tmp_path):
    code, _, err = csham("export", tmp_path / "no-run", *words)
    assert code == 2
    assert message in err


def test_no_run_and_missing_packages(csham, tmp_path, monkeypatch):
    code, _, err = csham("export", tmp_path / "no-run")
    assert code == 2
    assert "there is no run folder" in err
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, err = csham("export", tmp_path / "no-run")
    assert code == 2
    assert 'needs onnxscript. Install them: pip install "csham[export]"' in err


@pytest.fixture
def interruptible():
    """SIGINT as Python has it, which a shell without job control lets background processes ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("signum", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_behind(csham, finished, tmp_path, monkeypatch, interruptible, signum, expected):
    folder = tmp_path / "out"
    seen = []

    def compare(*_):
        seen.extend(folder.iterdir())
        signal.raise_signal(signum)

    monkeypatch.setattr(exporting, "compare", compare)
    code, _, err = csham("export", finished, "--format", "safetensors", "--output", folder / "w.safetensors")
    assert code == expected, err
    assert len(seen) == 1
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.long
def test_quantizing_prints_a_table(csham, finished, tmp_path):
    code, out, err = csham(
        "export", finished, "--quantize", "--calibration-images", 20, "--output", tmp_path / "m.onnx", "--preprocessing"
    )
    assert code == 0, err
    assert f"{tmp_path / 'm-int8.onnx'}: 8-bit integers, calibrated on 20 training images" in out
    header, _, exact, rounded = [line for line in out.splitlines() if line.strip()][-4:]
    assert header.split() == ["MB", "ms,", "batch", "1", "ms,", "batch", "32", "top-1", "of", "12", "images"]
    (name, size, *_), (small_name, small_size, *_) = exact.split(), rounded.split()
    assert (name, small_name) == ("float32", "int8")
    assert float(small_size) < 0.5 * float(size)
