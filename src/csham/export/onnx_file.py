"""ONNX: written by torch.onnx from a captured program, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from csham.errors import UserError
from csham.export.parity import Runner
from csham.export.program import is_dynamic

__all__ = ["open_onnx", "session", "write_onnx"]

_INPUT, _OUTPUT = "images", "logits"
# A file is one protobuf message, whose length is a signed 32-bit number.
_LARGEST = 2**31 - 1


def write_onnx(
    program: ExportedProgram,
    path: Path,
    metadata: Mapping[str, str],
    *,
    side_axes: tuple[int, int],
    opset: int | None = None,
) -> None:
    """Convert a captured program and write it as one file.

    Args:
        program: With one input and one output.
        path: The file.
        metadata: Kept as the model's ``metadata_props``.
        side_axes: Axes of height and width in the input.
        opset: Version of ONNX's operators; None takes what the converter was written for.

    Raises:
        UserError: The file would be larger than ONNX can be.
        Exception: Whatever torch.onnx raises.
    """
    converted = torch.onnx.export(
        program, (), input_names=[_INPUT], output_names=[_OUTPUT], opset_version=opset, dynamo=True, verbose=False
    )
    model: Any = converted.model_proto  # type: ignore[union-attr]
    (got,) = (entry.version for entry in model.opset_import if entry.domain == "")
    if opset not in (None, got):
        raise UserError(f"this network cannot be converted to opset {opset}; {got} is what it comes out in.")
    _name_axes(model, program, side_axes)
    _strip(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    model.doc_string = metadata["name"]
    if model.ByteSize() > _LARGEST:
        raise UserError("the network is larger than 2 GB, which is all that an ONNX file can hold. Use --format pt2.")
    path.write_bytes(model.SerializeToString())


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
    for found in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.functions):
        del found.metadata_props[:]
