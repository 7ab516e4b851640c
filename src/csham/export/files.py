"""The files that a network is exported to: written, opened to be run, and what each says of itself.

- ONNX: written by torch.onnx from a captured program, run by onnxruntime;
- PT2: the program that torch.export captured, for PyTorch without csham and for what compiles such programs;
- safetensors: the weights alone, with what builds the network again.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from csham._version import __version__
from csham.data.dataset import stored_side
from csham.errors import UserError
from csham.export.parity import Runner
from csham.export.program import Content, is_dynamic
from csham.files import SEAL, sealed
from csham.inference import Trained, load
from csham.training.network import write_weights

__all__ = [
    "describe",
    "open_onnx",
    "open_pt2",
    "open_weights_file",
    "session",
    "write_onnx",
    "write_pt2",
    "write_weights_file",
]

_INPUT, _OUTPUT = "images", "logits"
# A file is one protobuf message, whose length is a signed 32-bit number.
_LARGEST = 2**31 - 1


def write_onnx(content: Content, path: Path) -> None:
    """Convert a captured program and write it as one file, the metadata as the model's ``metadata_props``.

    Without an opset it is the one that the converter was written for.

    Raises:
        UserError: The file would be larger than ONNX can be.
        Exception: Whatever torch.onnx raises.
    """
    program, opset = content.program, content.opset
    assert program is not None
    converted = torch.onnx.export(
        program, (), input_names=[_INPUT], output_names=[_OUTPUT], opset_version=opset, dynamo=True, verbose=False
    )
    model: Any = converted.model_proto  # type: ignore[union-attr]
    (got,) = (entry.version for entry in model.opset_import if entry.domain == "")
    if opset not in (None, got):
        raise UserError(f"this network cannot be converted to opset {opset}; {got} is what it comes out in.")
    _name_axes(model, program, content.deployed.side_axes)
    _strip(model)
    for key, value in content.metadata.items():
        model.metadata_props.add(key=key, value=value)
    model.metadata_props.add(key="seal", value=SEAL)
    model.doc_string = content.metadata["name"]
    if model.ByteSize() > _LARGEST:
        raise UserError("the network is larger than 2 GB, which is all that an ONNX file can hold. Use --format pt2.")
    path.write_bytes(sealed(model.SerializeToString()))


def session(path: Path) -> Any:
    """Open a file in onnxruntime, on the CPU, with as many threads as PyTorch uses."""
    import onnxruntime  # noqa: PLC0415  an extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised; they need not be written to the terminal too
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_onnx(path: Path) -> Runner:
    """Return a function that runs a file."""
    opened = session(path)

    def run(images: Tensor) -> Tensor:
        (logits,) = opened.run([_OUTPUT], {_INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return run


def write_pt2(content: Content, path: Path) -> None:
    """Write a captured program, each value of the metadata as a file of the archive."""
    program = content.program
    assert program is not None
    # The input it was traced with is as large as a small network, and lets torch refuse inputs whose tensors only lie
    # otherwise in memory, such as maps of one position. That the program holds at other sizes is found by asking it.
    program.example_inputs = None
    archive = io.BytesIO()  # torch's writer of files ends the process where the disk is full
    torch.export.save(program, archive, extra_files=dict(content.metadata))
    path.write_bytes(archive.getbuffer())


def open_pt2(path: Path) -> Runner:
    """Return a function that runs a file that this process wrote; :func:`torch.export.load` unpickles."""
    run: Runner = torch.export.load(path).module()
    return run


def write_weights_file(content: Content, path: Path) -> None:
    """Write the weights of a network, and which network it is."""
    trained = content.trained
    write_weights(path, trained.network.state_dict(), trained.info, trained.run_weights)


def open_weights_file(path: Path) -> Runner:
    """Return the network that a file makes."""
    return load(path).network


def describe(trained: Trained, *, preprocessing: bool, least: int | None) -> dict[str, str]:
    """Return names and values, as texts: what ONNX keeps as the model's ``metadata_props``.

    Lists and mappings are JSON.

    Args:
        trained: The network and its preprocessing.
        preprocessing: True if the graph takes bytes.
        least: The smallest side of the images it takes, in pixels; None if it takes one size only.
    """
    info = trained.info
    network = {key: value for key, value in info.to_dict().items() if key not in ("classes", "mean", "std")}
    values: dict[str, Any] = {
        "classes": info.classes,
        "image_size": info.image_size,
        "resize_to": stored_side(info.image_size),
        "mean": info.mean,
        "std": info.std,
        "input": _input(preprocessing, info.image_size, least),
        "output": f"logits: (batch, {len(info.classes)}) float32, in the order of classes; softmax gives probabilities",
        "preprocessing": _steps(info.image_size, preprocessing),
        "network": network,
        "weights": trained.weights,
        "epoch": trained.epoch,
        "name": trained.label,
        "csham_version": __version__,
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in values.items()
    }


def _name_axes(model: Any, program: ExportedProgram, side_axes: tuple[int, int]) -> None:
    """Call the axes by what they are; the converter calls them s77 and the like."""
    height, width = side_axes
    names = {
        axis: name for axis, name in ((0, "batch"), (height, "height"), (width, "width")) if is_dynamic(program, axis)
    }
    (images,), (logits,) = model.graph.input, model.graph.output
    for value, axes in ((images, names), (logits, {0: "batch"})):
        for axis, name in axes.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    # Shapes within the graph are in the other names; runtimes infer them anew.
    del model.graph.value_info[:]


def _strip(model: Any) -> None:
    """Leave out where each node came from: stack traces with paths of this machine, as large as a small network."""
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.functions):
        del part.metadata_props[:]


def _input(preprocessing: bool, image_size: int, least: int | None) -> str:
    sides = f"{image_size}, {image_size}" if least is None else "height, width"
    limit = "" if least is None else f"; sides from {least} pixels on"
    if preprocessing:
        return f"images: (batch, {sides}, 3) uint8, RGB{limit}"
    return f"images: (batch, 3, {sides}) float32, RGB, normalised{limit}"


def _steps(image_size: int, preprocessing: bool) -> list[str]:
    """Say what must be done to an image before the graph gets it."""
    side = stored_side(image_size)
    steps = [
        "turn the image as its EXIF orientation says, put it over white, convert it to RGB of 8 bits",
        f"cut its centre square and resize that to {side} x {side} pixels, bicubic with antialiasing, as Pillow does",
    ]
    if side != image_size:
        steps.append(f"cut the centre, {image_size} x {image_size} pixels")
    if not preprocessing:
        steps += ["divide by 255, subtract mean, divide by std, channel by channel", "put the channels first"]
    return steps
