"""Weights from a local file into a network. What is new by design may differ; what differs otherwise is refused."""

from __future__ import annotations

import pickle
import sys
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from csham.backbones.zoo import weights_path
from csham.errors import UserError
from csham.files import has_right_seal
from csham.words import some

__all__ = ["NewWeightsWarning", "check_finite", "classifiers", "load_weights_file", "put_weights"]

# Heads for training alone that a network is built without here.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")

_SAVE = "Save the network's state_dict() with torch.save or safetensors."


class NewWeightsWarning(UserWarning):
    """Warning that modules start from new weights where others were loaded.

    Attributes:
        modules: Their names.
    """

    def __init__(self, text: str, modules: Iterable[str]) -> None:
        super().__init__(text)
        self.modules = tuple(modules)


def load_weights_file(model: nn.Module, path: Path | str, name: str, in_chans: int, new: Iterable[str] = ()) -> None:
    """Load a checkpoint of the same architecture; warns once of what stays new.

    Args:
        model: The network, without attention.
        path: A safetensors file, or one that torch wrote: a state dict, or a dict that has it under ``state_dict_ema``,
            ``model_ema``, ``state_dict`` or ``model``. Nothing in it is run. Or ``zoo:NAME``.
        name: Name of the network, for messages.
        in_chans: Channels of the images; the first convolution is converted from three to it.
        new: Modules that the checkpoint may have otherwise, or not at all.

    Raises:
        UserError: The file cannot be read, or is of another architecture; names the first differences.
    """
    kept = put_weights(model, _read(weights_path(path)), f"{path} does not fit {name}", in_chans, new)
    if kept:
        text = f"{path} has other shapes for {' and '.join(kept)} of {name}: new weights there"
        warnings.warn(NewWeightsWarning(text, kept), stacklevel=4)


def put_weights(
    model: nn.Module, weights: Mapping[str, Tensor], what: str, in_chans: int, new: Iterable[str] = ()
) -> list[str]:
    """Load a state dict that may differ in the classifier and in the modules named ``new``.

    Args:
        model: Takes the weights.
        weights: As its library publishes them.
        what: The file and the network, for the message.
        in_chans: Channels of the images.
        new: See :func:`load_weights_file`.

    Returns:
        The modules that keep their new weights.
    """
    if any(".attached." in key for key in weights):
        raise UserError(f"{what}: it holds attention too. Use a run of the same backbone with --attention none.")
    expected = model.state_dict()
    weights = _in_timms_names(model, weights) if set(weights) != set(expected) else dict(weights)
    weights = {key: value for key, value in weights.items() if key in expected or not key.startswith(_AUXILIARY)}
    _convert_channels(model, weights, in_chans)

    may_differ = (*new, *classifiers(model))
    differs = [key for key in expected if key not in weights or weights[key].shape != expected[key].shape]
    differs += [key for key in weights if key not in expected]
    kept = [module for module in may_differ if any(_is_in(key, module) for key in differs)]
    wrong = [key for key in differs if not any(_is_in(key, m) for m in kept) and not _is_counter(key, weights)]
    if wrong:
        differences = some((_difference(key, weights, expected) for key in wrong), 3, "; ")
        raise UserError(f"{what}: {differences}. The file must come from the same architecture.")
    fitting = {key: value for key, value in weights.items() if not any(_is_in(key, module) for module in kept)}
    check_finite(fitting, what)
    model.load_state_dict(fitting, strict=False)
    return [module for module in kept if any(_is_in(key, module) for key in expected)]


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Return the modules that make a network's logits, if there are any; attention may be attached."""
    config = getattr(model, "pretrained_cfg", None) or {}
    named = config.get("classifier")
    if named:
        return (named,) if isinstance(named, str) else tuple(named)
    if hasattr(model, "fc"):
        return ("fc",)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return tuple([name for name in layers if "attached" not in name.split(".")][-1:])


def check_finite(weights: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are no numbers: nothing that a network says with them means anything.

    Args:
        weights: By their names.
        what: The file and the network, for the message.

    Raises:
        UserError: One of them is NaN or infinite.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{what}: {name!r} holds numbers that are not finite. Nothing can be done with them.")


def _read(path: Path) -> dict[str, Tensor]:
    """Read a file with timm's reader, which strips what wrappers such as DDP put before the names."""
    import timm.models  # noqa: PLC0415  takes seconds to import

    try:
        _check_archive(path)
        content = timm.models.load_state_dict(str(path), weights_only=True)
    except UserError:
        raise
    except Exception as err:  # whatever damaged files make torch, safetensors, timm and zipfile raise
        # timm says so itself, or in words of its own with torch's as the cause.
        if isinstance(err, pickle.UnpicklingError) or isinstance(err.__cause__, pickle.UnpicklingError):
            raise UserError(
                f"{path} holds something other than tensors and plain values, or is damaged. It was not loaded, and "
                f"nothing in it was run. {_SAVE}"
            ) from err
        raise UserError(f"{path} is truncated or not a file of weights (safetensors, or torch's .pth or .pt).") from err
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state_dict: tensors by name, alone or under 'state_dict' or 'model'.")
    if has_right_seal(path) is False:
        raise UserError(
            f"{path} was changed since csham wrote it: its SHA-256 is not the one in its metadata. Take it again from "
            "where it came."
        )
    return dict(content)


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than it takes on the disk, which is without limit."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise UserError(f"{path} holds compressed parts, which torch never writes. It was not loaded. {_SAVE}")


def _in_timms_names(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the names of other libraries, where timm can for this architecture."""
    module = sys.modules[type(model).__module__]
    for name in ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained"):
        convert = getattr(module, name, None)
        if module.__name__.startswith("timm.") and convert is not None:
            try:
                return dict(convert(dict(weights), model))
            except Exception:  # of another architecture: the message on what differs says more
                return dict(weights)
    return dict(weights)


def _convert_channels(model: nn.Module, weights: dict[str, Tensor], in_chans: int) -> None:
    from timm.models import adapt_input_conv  # noqa: PLC0415  takes seconds to import

    name, first = next(((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    weight = weights.get(f"{name}.weight")
    if (
        first is not None
        and weight is not None
        and weight.ndim == 4
        and weight.shape[1] == 3
        and first.in_channels == in_chans != 3
    ):
        weights[f"{name}.weight"] = adapt_input_conv(in_chans, weight)


def _is_in(key: str, module: str) -> bool:
    return key.startswith(f"{module}.")


def _is_counter(key: str, weights: Mapping[str, Tensor]) -> bool:
    """Return True if a key is a batch norm's count of batches, which old files lack and nothing here uses."""
    return key.endswith(".num_batches_tracked") and key not in weights


def _difference(key: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    if key not in weights:
        return f"it has no {key!r}"
    if key not in expected:
        return f"the network has no {key!r}"
    return f"{key!r} is {tuple(weights[key].shape)}, not {tuple(expected[key].shape)}"
