"""Networks by name, measured side by side in one run of :mod:`csham.cost`; what ``csham profile`` and studies share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from csham.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from csham.backbones.spec import NetworkSpec
    from csham.cost import Comparison
    from csham.cost.comparison import Progress

__all__ = ["make_comparison", "run_comparison"]


def make_comparison(
    networks: Mapping[str, NetworkSpec],
    *,
    num_classes: int,
    image_size: int,
    device: str = "auto",
    threads: int | None = None,
    baselines: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    **settings: Any,
) -> Comparison:
    """Prepare to measure networks in turns.

    Args:
        networks: By name.
        num_classes: Width of the logits.
        image_size: Side of the images, in pixels.
        device: As in :class:`csham.training.config.TrainConfig`.
        threads: On the CPU; None leaves them as they are.
        baselines: The network that each one's ratios are against; the first where it is not named.
        progress: Told what happens.
        seed: Of weights, images and the order in each round.
        **settings: Others of :class:`csham.cost.Settings`.

    Raises:
        UserError: The device is not there, or lacks a compiler that the settings want.
    """
    # Imported here, so that a misspelt name is answered without importing PyTorch.
    import torch  # noqa: PLC0415

    from csham.cost import Comparison, Settings  # noqa: PLC0415
    from csham.training.machine import choose_device, missing_compiler  # noqa: PLC0415

    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device(choose_device(device))
    missing = missing_compiler(place.type) if True in settings.get("compiled", ()) else None
    if missing is not None:
        raise UserError(f"--compile: {missing}. Install it, or use --no-compile.")

    def build(network: NetworkSpec) -> nn.Module:
        torch.manual_seed(seed)
        return network.build(num_classes=num_classes, image_size=image_size)

    sources = {name: partial(build, network) for name, network in networks.items()}
    size = (3, image_size, image_size)
    return Comparison(sources, Settings(**settings, seed=seed, input_size=size, device=place), progress, baselines)


def run_comparison(comparison: Comparison) -> bool:
    """Measure; False if Ctrl-C ended it early."""
    try:
        comparison.run()
    except KeyboardInterrupt:
        return False
    return True
