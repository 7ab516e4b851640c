"""Readers: what csham reads, its own files and others, each with a sound thing, made once, and what is asked of it.

A reader is asked in this process, where its folder is the current one. What it returns is compared with what it
returned for the sound thing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from PIL import Image

import csham
from csham.cli import main
from csham.data import prepare
from csham.errors import UserError
from csham.export.formats import FORMATS
from csham.report.study_material import read_material
from csham.share import share
from csham.study.cell import CellRunner
from csham.study.costs import measure_costs
from csham.study.grid import Network
from csham.study.setup import Request, set_up
from csham.training.checkpoints import load_checkpoint
from csham.training.config import resolve
from csham.training.interrupt import InterruptedRunError
from csham.training.loop import train
from csham.training.progress import QuietProgress

Say = Callable[[str], None]


class FaultError(Exception):
    """A command called what it met a fault of csham."""


@dataclass(frozen=True)
class Target:
    """Files of a reader that are changed.

    Attributes:
        pattern: Of their paths in the reader's folder.
        kind: One of :data:`mutations.EDITS`.
        checked: ``"always"`` where any change has to be noticed; ``"bytes"`` where an edit that keeps the format
            cannot be; ``"never"`` where csham has not written the file, so that others are as good.
    """

    pattern: str
    kind: str
    checked: str = "always"


@dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        make: Makes the sound thing in a folder.
        read: Returns what is read, and may say something to the user.
        targets: Files that are changed.
        tells: Words that say what is missing, though they do not name the file: a store without a line is a study with
            a run to do.
        slow: One reading takes a second or more, or making the sound thing many.
    """

    make: Callable[[Path], None]
    read: Callable[[Say], Any]
    targets: tuple[Target, ...]
    tells: str = ""
    slow: bool = False


def command(say: Say, *words: str) -> Any:
    """Call a command in this process, and return what it prints."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    printed, said = (stream.buffer.getvalue().decode() for stream in (out, err))
    if code == 2:
        raise UserError(said)
    if code:
        raise FaultError(f"exit code {code}: {said}")
    if said:
        say(said)
    return printed


# Sound things. Each costs a second or two; what several need is made once and copied.

_KEPT: dict[str, Path] = {}


def _once(name: str, place: Path, make: Callable[[Path], None]) -> None:
    """Make something in a folder beside the readers', or copy what was made there."""
    if name not in _KEPT or not _KEPT[name].exists():
        _KEPT[name] = place.parent / f"made-{name}"
        _KEPT[name].mkdir()
        make(_KEPT[name])
    shutil.copytree(_KEPT[name], place, dirs_exist_ok=True)


_RUN = {
    "data": "digits", "backbone": "lenet5", "attention": "csham", "image_size": 32, "epochs": 2, "batch_size": 32,
    "lr": 0.2, "seed": 3, "device": "cpu", "compile": False, "precision": "fp32",
}  # fmt: skip


def _finished_run(place: Path) -> None:
    summary = train(resolve(_RUN), run=place / "run")
    if summary["top1"] < 50:  # what says the same of every image says it with changed weights too
        raise SystemExit(f"the sound run has learnt nothing: top-1 {summary['top1']}%")


def _stopped_run(place: Path) -> None:
    class Stop(QuietProgress):
        def epoch(self, row: Any, epochs: int) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with contextlib.suppress(InterruptedRunError):
        train(resolve(_RUN), run=place / "run", progress=Stop())


def _study(place: Path) -> None:
    settings = {name: _RUN[name] for name in ("image_size", "epochs", "batch_size", "lr", "precision")} | {"epochs": 1}
    networks = (Network("lenet5"), Network("lenet5", "simam"))
    request = Request(data="digits", folder=place / "study", networks=networks, seeds=(0, 1), settings=settings)
    store = set_up(request, print, lambda *_: None).store
    runner = CellRunner(store, {"device": "cpu", "compile": False})
    for cell in store.study.cells():
        runner.run(cell.key)
    measure_costs(store.study, store.path, device="cpu", rounds=1, seconds=5)


def _write_images(place: Path, count: int = 6) -> None:
    rng = np.random.default_rng(0)
    for number, name in enumerate(("ant", "bee", "cow")):
        folder = place / "animals" / name
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 120, (20, 20, 3)).astype(np.uint8)
            pixels[:, :, number] += 100
            ending = ("png", "jpg", "webp", "gif", "bmp", "tiff")[index % 6]
            Image.fromarray(pixels).save(folder / f"{index}.{ending}")


def _write_cache(place: Path) -> None:
    _write_images(place)
    prepare("animals", image_size=32, cache_dir=Path("cache"))


def _write_table(place: Path) -> None:
    _write_images(place)
    files = sorted((place / "animals").glob("*/*"))
    lines = ["image,label,split"]
    lines += [f"animals/{f.parent.name}/{f.name},{f.parent.name},{'test' if f.stem == '5' else 'train'}" for f in files]
    (place / "table.csv").write_text("\n".join(lines) + "\n")


def _write_archives(place: Path) -> None:
    _write_images(place)
    with zipfile.ZipFile(place / "animals.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((place / "animals").glob("*/*")):
            archive.write(file, file.relative_to(place))
    for ending, mode in (("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz")):
        with tarfile.open(place / f"animals.{ending}", mode) as archive:  # type: ignore[call-overload]
            archive.add(place / "animals", "animals")


def _write_parquet(place: Path) -> None:
    _write_images(place)
    files = sorted((place / "animals").glob("*/*"))
    rows = [{"image": {"bytes": f.read_bytes(), "path": f.name}, "label": i % 3} for i, f in enumerate(files)]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    said = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["ant", "bee", "cow"]}}
    about = {"huggingface": json.dumps({"info": {"features": said}})}
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=about)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), place / "train.parquet")


def _write_weights(place: Path) -> None:
    torch.manual_seed(0)
    weights = csham.create_model("lenet5", num_classes=3, image_size=32).state_dict()
    safetensors.torch.save_file(weights, place / "weights.safetensors")
    torch.save(weights, place / "weights.pth")


def _write_keras(place: Path) -> None:
    layer = csham.CSHAM(16)
    rng = np.random.default_rng(0)
    shapes = [tuple(value.shape) for value in layer.state_dict().values() if value.ndim > 1]
    with h5py.File(place / "keras.h5", "w") as file:
        for number, shape in enumerate(shapes):
            group = file.create_group(f"layers/part_{number}/vars")
            group["0"] = np.moveaxis(rng.normal(size=shape).astype(np.float32), (0, 1), (-1, -2))
            if len(shape) == 3:
                group["1"] = rng.normal(size=shape[0]).astype(np.float32)
        for number in range(2):
            group = file.create_group(f"layers/norm_{number}/vars")
            for part in range(4):
                group[str(part)] = np.full(1, 0.5 + part, np.float32)


def _write_graphs(place: Path) -> None:
    _once("run", place, _finished_run)
    trained = csham.load(place / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    for ending in ("onnx", "pt2", "safetensors"):
        csham.export(trained, place / f"network.{ending}", images=pixels, dynamic_size=False)
    np.save(place / "pixels.npy", pixels)


def _share(place: Path) -> None:
    _once("run", place, _finished_run)
    share(place / "run", place / "shared")
    shutil.rmtree(place / "run")


# What is asked of them.


def _evaluated(say: Say) -> Any:
    return [
        command(say, "evaluate", "run", "--weights", weights, "--json", "--device", "cpu", "--quiet")
        for weights in ("last", "best")
    ]


def _shared_again(say: Say) -> Any:
    return command(say, "share", "run", "out", "--json", "--weights", "best"), Path("out/README.md").read_bytes()


def _resumed(say: Say) -> Any:
    command(say, "train", "--resume", "run", "--device", "cpu", "--quiet", "--json")
    summary = json.loads(Path("run/summary.json").read_bytes())
    content = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    return [summary[name] for name in ("top1", "loss")], content["model"], content["optimizer"]


def _checkpoint(say: Say) -> Any:
    return load_checkpoint(Path("run/checkpoints/last.ckpt"))


def _loaded(path: str, weights: str | None = None) -> Callable[[Say], Any]:
    def read(say: Say) -> Any:
        with _warnings_to(say):
            trained = csham.load(path, weights=weights)
        return trained.network.state_dict(), trained.info.to_dict(), trained.weights, trained.epoch

    return read


def _assessed(say: Say) -> Any:
    material = read_material(Path("study"))
    for note in material.warnings:
        say(note)
    return material.results.to_dict(), material.costs.rows, material.costs.machine, material.study


def _reported(say: Say) -> Any:
    return command(say, "report", "study"), Path("study/report/index.html").read_bytes()


def _compared(say: Say) -> Any:
    return command(say, "compare", "--study", "study", "--dry-run")


def _prepared(data: str) -> Callable[[Say], Any]:
    def read(say: Say) -> Any:
        found = prepare(data, image_size=32, cache_dir=Path("cache"), max_bad=1)
        for file in found.bad_files:
            say(f"{file.path}: {file.reason}")
        return np.asarray(found.images), found.labels, found.parts, found.sums, found.classes, found.image_size

    return read


def _predicted(say: Say) -> Any:
    images = sorted(str(path) for path in Path("animals/ant").iterdir())
    return command(say, "predict", "run", *images, "--json", "--quiet", "--device", "cpu")


def _explained(say: Say) -> Any:
    images = sorted(str(path) for path in Path("animals/ant").iterdir())
    return command(say, "explain", "run", *images[:1], "--output", "out", "--quiet", "--device", "cpu")


def _weights_taken(path: str) -> Callable[[Say], Any]:
    def read(say: Say) -> Any:
        torch.manual_seed(0)
        with _warnings_to(say):
            return csham.create_model("lenet5", num_classes=3, image_size=32, weights_file=path).state_dict()

    return read


def _keras_taken(say: Say) -> Any:
    layer = csham.CSHAM(16)
    csham.load_keras_weights(layer, "keras.h5")
    state = layer.state_dict()
    if not all(value.isfinite().all() for value in state.values() if value.is_floating_point()):
        raise FaultError("weights that are no numbers were loaded")
    return state


def _answered(format: str) -> Callable[[Say], Any]:
    """What a written graph answers; csham opens it only where it checks what it has just written."""

    def read(say: Say) -> Any:
        pixels = np.load("pixels.npy")
        batch = (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)
        try:
            with torch.no_grad():
                return FORMATS[format].open(Path(f"network.{format}"))(torch.from_numpy(batch))
        except Exception as err:  # the command turns whatever its runtime says into a sentence on the file
            raise UserError(f"network.{format}: {type(err).__name__}") from err

    return read


@contextlib.contextmanager
def _warnings_to(say: Say) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        say(str(one.message))


def _with_images(make: Callable[[Path], None], name: str) -> Callable[[Path], None]:
    def both(place: Path) -> None:
        _once(name, place, make)
        _write_images(place)

    return both


def _made(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda place: _once(name, place, make)


_RUN_FILES = (
    Target("run/config.yaml", "yaml"),
    Target("run/summary.json", "json"),
    Target("run/environment.json", "json"),
    Target("run/metrics.csv", "text"),
    Target("run/confusion.csv", "text"),
    Target("run/model.safetensors", "safetensors"),
    Target("run/checkpoints/best.ckpt", "zip"),
    Target("run/checkpoints/last.ckpt", "zip"),
)
_ANIMALS = Target("animals/*/*", "bytes", "never")

READERS = {
    "evaluate": Reader(_made("run", _finished_run), _evaluated, _RUN_FILES),
    "share": Reader(_made("run", _finished_run), _shared_again, _RUN_FILES),
    "predict": Reader(_with_images(_finished_run, "run"), _predicted, (*_RUN_FILES[:1], _RUN_FILES[-1], _ANIMALS)),
    "explain": Reader(_with_images(_finished_run, "run"), _explained, (_RUN_FILES[0], _RUN_FILES[-1]), slow=True),
    "resume": Reader(
        _made("stopped", _stopped_run),
        _resumed,
        (
            Target("run/config.yaml", "yaml", "bytes"),
            Target("run/environment.json", "json", "bytes"),
            Target("run/metrics.csv", "text"),
            Target("run/checkpoints/best.ckpt", "zip", "bytes"),
            Target("run/checkpoints/last.ckpt", "zip", "bytes"),
        ),
        slow=True,
    ),
    "checkpoint": Reader(
        _made("stopped", _stopped_run), _checkpoint, (Target("run/checkpoints/last.ckpt", "zip", "bytes"),)
    ),
    "chosen weights": Reader(_made("run", _finished_run), _loaded("run", "best"), (_RUN_FILES[6],)),
    "weights of a run": Reader(
        _made("run", _finished_run),
        _loaded("run/model.safetensors"),
        (replace(_RUN_FILES[5], checked="bytes"),),
    ),
    "exported weights": Reader(
        _made("graphs", _write_graphs),
        _loaded("network.safetensors"),
        # Whoever edits the header may take the file's own sum away, as older files have none.
        (Target("network.safetensors", "safetensors", "bytes"),),
        slow=True,
    ),
    "shared": Reader(
        _share,
        _loaded("shared"),
        (Target("shared/config.json", "json"), Target("shared/model.safetensors", "safetensors")),
    ),
    "store": Reader(
        _made("study", _study),
        _assessed,
        (
            Target("study/records.jsonl", "json lines"),
            Target("study/records.jsonl", "json lines"),
            Target("study/study.yaml", "yaml"),
            Target("study/costs.json", "json"),
        ),
        tells="no record yet",
    ),
    "report": Reader(
        _made("study", _study),
        _reported,
        (
            Target("study/records.jsonl", "json lines"),
            Target("study/study.yaml", "yaml"),
            Target("study/costs.json", "json"),
        ),
        tells="no record yet",
        slow=True,
    ),
    "plan": Reader(
        _made("study", _study),
        _compared,
        # A line that is gone is a cell to do, which is what is asked.
        (Target("study/study.yaml", "yaml"), Target("study/records.jsonl", "json lines", "never")),
    ),
    "cache": Reader(_write_cache, _prepared("animals"), (Target("cache/packed/*/*", "bytes"),)),
    "images": Reader(_write_images, _prepared("animals"), (_ANIMALS,)),
    "table": Reader(_write_table, _prepared("table.csv"), (Target("table.csv", "text", "never"),)),
    "zip": Reader(_write_archives, _prepared("animals.zip"), (Target("animals.zip", "zip", "never"),)),
    "tar": Reader(_write_archives, _prepared("animals.tar"), (Target("animals.tar", "bytes", "never"),)),
    "tar.gz": Reader(_write_archives, _prepared("animals.tar.gz"), (Target("animals.tar.gz", "bytes", "never"),)),
    "tar.xz": Reader(_write_archives, _prepared("animals.tar.xz"), (Target("animals.tar.xz", "bytes", "never"),)),
    "parquet": Reader(_write_parquet, _prepared("train.parquet"), (Target("train.parquet", "bytes", "never"),)),
    "weights file": Reader(
        _write_weights, _weights_taken("weights.safetensors"), (Target("weights.safetensors", "safetensors", "never"),)
    ),
    "torch file": Reader(_write_weights, _weights_taken("weights.pth"), (Target("weights.pth", "zip", "never"),)),
    "keras": Reader(_write_keras, _keras_taken, (Target("keras.h5", "bytes", "never"),)),
    "onnx": Reader(
        _made("graphs", _write_graphs), _answered("onnx"), (Target("network.onnx", "bytes", "never"),), slow=True
    ),
    "pt2": Reader(
        _made("graphs", _write_graphs), _answered("pt2"), (Target("network.pt2", "zip", "never"),), slow=True
    ),
}
"""Every reader by its name."""
