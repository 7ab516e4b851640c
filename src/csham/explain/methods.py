"""Names of the maps of what speaks for a class: our own Grad-CAM, and those of pytorch-grad-cam. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from csham.errors import UserError
from csham.settings import check_choice

__all__ = ["METHODS", "OWN", "Method", "check_library", "find_method"]

OWN = "gradcam"


@dataclass(frozen=True)
class Method:
    """One kind of map.

    Attributes:
        title: Its name in pictures and tables.
        class_name: Name of its class in ``pytorch_grad_cam``; empty for our own.
        source: Paper.
        of_class: False if the map is the same for every class.
    """

    title: str
    class_name: str
    source: str
    of_class: bool = True


METHODS: dict[str, Method] = {
    OWN: Method("Grad-CAM", "", "Selvaraju et al., arXiv:1610.02391"),
    "gradcam++": Method("Grad-CAM++", "GradCAMPlusPlus", "Chattopadhay et al., arXiv:1710.11063"),
    "xgradcam": Method("XGrad-CAM", "XGradCAM", "Fu et al., arXiv:2008.02312"),
    "hirescam": Method("HiResCAM", "HiResCAM", "Draelos and Carin, arXiv:2011.08891"),
    "layercam": Method("LayerCAM", "LayerCAM", "Jiang et al., IEEE TIP 2021"),
    "eigengradcam": Method("Eigen-Grad-CAM", "EigenGradCAM", "after Muhammad and Yeasin, arXiv:2008.00299"),
    "scorecam": Method("Score-CAM", "ScoreCAM", "Wang et al., arXiv:1910.01279"),
    "ablationcam": Method("Ablation-CAM", "AblationCAM", "Desai and Ramaswamy, WACV 2020"),
    "eigencam": Method("Eigen-CAM", "EigenCAM", "Muhammad and Yeasin, arXiv:2008.00299", of_class=False),
    "kpcacam": Method("KPCA-CAM", "KPCA_CAM", "Karmani et al., arXiv:2410.00267", of_class=False),
}
"""Every kind of map by its name, as pytorch-grad-cam's own command line has it; the first is ours."""


def find_method(name: str) -> Method:
    """Return a kind of map, once it is known that it can be computed.

    Raises:
        UserError: There is none of this name, or it needs pytorch-grad-cam, which is not installed.
    """
    check_choice("method", name, METHODS)
    if METHODS[name].class_name:
        check_library(f"--method {name}")
    return METHODS[name]


def check_library(what: str) -> None:
    """Refuse what needs pytorch-grad-cam where that is not installed.

    Args:
        what: Subject of the message.
    """
    if find_spec("pytorch_grad_cam") is None:
        raise UserError(f'{what} needs pytorch-grad-cam. Install it: pip install "csham[cam]".')
