"""What a network can be exported to; importable without torch."""

from __future__ import annotations

from importlib.util import find_spec

from csham.errors import UserError, unknown_name

__all__ = ["FORMATS", "check_format"]

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}
"""Each format with the ending of its files."""

_NEEDED = {"onnx": ("onnx", "onnxruntime", "onnxscript")}


def check_format(
    format: str, *, preprocessing: bool = False, dynamic_size: bool = False, opset: int | None = None
) -> None:
    """Refuse a format that there is not, that cannot do what is asked, or that packages are missing for.

    Args:
        format: One of :data:`FORMATS`.
        preprocessing: Whether the file is to take bytes.
        dynamic_size: Whether it has to take images of any size.
        opset: The version of ONNX's operators, if one was asked for.

    Raises:
        UserError: It is one of these.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if format == "safetensors" and (preprocessing or dynamic_size):
        raise UserError("safetensors holds weights, no graph: preprocessing and dynamic size are for onnx and pt2.")
    if format != "onnx" and opset is not None:
        raise UserError(f"an opset is a version of ONNX's operators; the format is {format}.")
    missing = [name for name in _NEEDED.get(format, ()) if find_spec(name) is None]
    if missing:
        raise UserError(f'export to {format} needs {", ".join(missing)}. Install them: pip install "csham[export]".')
