"""Maps and scores by pytorch-grad-cam (``csham[cam]``), of networks that it need not know how to hook.

The library gets a module of ours in place of the network: one whose only layer stands where the chosen layer's output
passes. So what it does to a model (hooks, gradients of parameters, layers that it exchanges) is not done to the
network: compiled ones, csham's kernels and what is attached run as they do for our own Grad-CAM.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csham.errors import UserError
from csham.explain.gradcam import GradCam
from csham.explain.methods import check_library, find_method
from csham.probing import eagerly, evaluating

__all__ = ["ROAD_PERCENTILES", "LibraryCam", "road"]

ROAD_PERCENTILES = (20, 40, 60, 80)
"""Shares of the pixels, in percent, that stay in the images that ROAD asks about."""


class LibraryCam:
    """One of pytorch-grad-cam's maps, of the layer that our own Grad-CAM looks at.

    The network's modes, hooks, parameters, their gradients and whether they have some are afterwards what they were.

    Args:
        gradcam: Of the network.
        method: A name of :data:`csham.explain.methods.METHODS` other than ``"gradcam"``.

    Raises:
        UserError: There is no such method, or the library is not installed or too old.
    """

    def __init__(self, gradcam: GradCam, method: str) -> None:
        self._gradcam, self._method = gradcam, find_method(method)
        self._class = _of_library(self._method.class_name)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Compute the maps of a batch.

        Args:
            images: (B, C, H, W), normalised.
            targets: For each image the class whose map it is, (B,) int64.

        Returns:
            The maps, (B, H, W) float32 from 0 to 1, upsampled and scaled as the library does, on the CPU.
        """
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: PLC0415  optional, and slow

        network = self._gradcam.model
        with torch.inference_mode(False), evaluating(network), eagerly(), _frozen(network), torch.enable_grad():
            images = images.clone() if images.is_inference() else images
            stand_in = _AtLayer(network, self._gradcam.layer, images)
            cam = self._class(stand_in, [stand_in.at])
            # One at a time: some run as often as a layer has channels, on copies of all images together.
            maps = []
            for image, target in zip(images, targets.tolist(), strict=True):
                with redirect_stderr(io.StringIO()):  # bars of its progress, an image each
                    maps.append(cam(image[None], [ClassifierOutputTarget(target)])[0])
        found = torch.from_numpy(np.stack(maps)).float()
        return torch.where(found.isfinite(), found, 0.0)  # of maps that are the same everywhere it may make NaN


def road(network: nn.Module, image: Tensor, target: int, ranks: Sequence[np.ndarray], *, seed: int = 0) -> np.ndarray:
    """Measure orders of the pixels of one image by ROAD: what is taken away is filled from its neighbours, with noise.

    Half the difference between the probability of the class when the last pixels of an order are replaced and when the
    first are, mean over :data:`ROAD_PERCENTILES`. A faithful map has a large one.

    Args:
        network: From (B, C, H, W) to logits, in evaluation mode.
        image: (C, H, W), normalised.
        target: The class whose probability is followed.
        ranks: For each order the place of each pixel in it, (H, W), from 0.
        seed: Of the noise, the same for every order.

    Returns:
        (len(ranks),) float64, from -0.5 to 0.5.

    Raises:
        UserError: The library is not installed.

    Source: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022,
    arXiv:2202.00449.
    """
    check_library("ROAD")
    from pytorch_grad_cam.metrics.road import ROADCombined  # noqa: PLC0415  optional, and slow
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget  # noqa: PLC0415

    scores = []
    measure, targets = ROADCombined(percentiles=list(ROAD_PERCENTILES)), [ClassifierOutputSoftmaxTarget(target)]
    for rank in ranks:
        weights = (1 - rank / rank.size).astype(np.float32)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            scores.append(float(measure(image[None], weights[None], targets, network)[0]))
    return np.array(scores)


def _of_library(name: str) -> Any:
    import pytorch_grad_cam  # noqa: PLC0415  optional, and slow

    try:
        return getattr(pytorch_grad_cam, name)
    except AttributeError as err:
        raise UserError(
            f"this version of pytorch-grad-cam has no {name}. Install a newer one: pip install --upgrade grad-cam."
        ) from err


class _AtLayer(nn.Module):
    """A network as the library sees it: ``at`` is all there is of it, and gets the chosen layer's output.

    Args:
        network: Not one of its modules, so that nobody finds it here.
        layer: Name of the layer.
        images: Of the kind that it will see, for their device.
    """

    def __init__(self, network: nn.Module, layer: str, images: Tensor) -> None:
        super().__init__()
        self.at = nn.Identity()
        self.place = nn.Parameter(images.new_empty(0), requires_grad=False)  # the library asks where parameters are
        self._network, self._layer = [network], layer

    def forward(self, images: Tensor) -> Tensor:
        calls = 0

        def pass_through(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise UserError(f"{self._layer} runs several times. Name another layer, or take --method gradcam.")
            # The graph begins here. Contiguous and float32, since the library makes views and numpy's arrays; a copy
            # goes on, since the next layer may write into it.
            passed: Tensor = self.at(output.detach().float().contiguous().requires_grad_())
            return passed.to(output.dtype, copy=True)

        network = self._network[0]
        handle = network.get_submodule(self._layer).register_forward_hook(pass_through)
        try:
            logits: Tensor = network(images)
        finally:
            handle.remove()
        return logits


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Keep gradients from the parameters, for a while."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
