"""Pictures and numbers of where and what a trained network attends to.

``gradcam`` finds the layer and computes Grad-CAM, ``cams`` gets other maps from pytorch-grad-cam (``methods`` names
them), ``explanation`` puts it together with what every attention weighs,
``picture`` shows it, ``folder`` keeps pictures of many images, ``faithfulness`` measures on test images how much of it
is true, ``gates`` what the weights do by stage, over many images and runs. Imports ``study``, ``inference`` and what
lies below. Start with :func:`explain`, which calling this package does too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names, make_callable

if TYPE_CHECKING:
    from csham.explain.explanation import Explanation, StageMaps, explain, explain_together
    from csham.explain.faithfulness import Faithfulness, MapScores, measure_faithfulness, sample_test_images
    from csham.explain.gates import RunGates, StageGates, gate_table, measure_gates, measure_runs, trained_runs
    from csham.explain.gradcam import GradCam
    from csham.explain.picture import draw, overlay, picture_bytes

__all__ = [
    "Explanation",
    "Faithfulness",
    "GradCam",
    "MapScores",
    "RunGates",
    "StageGates",
    "StageMaps",
    "draw",
    "explain",
    "explain_together",
    "gate_table",
    "measure_faithfulness",
    "measure_gates",
    "measure_runs",
    "overlay",
    "picture_bytes",
    "sample_test_images",
    "trained_runs",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Explanation": "csham.explain.explanation",
        "Faithfulness": "csham.explain.faithfulness",
        "GradCam": "csham.explain.gradcam",
        "MapScores": "csham.explain.faithfulness",
        "RunGates": "csham.explain.gates",
        "StageGates": "csham.explain.gates",
        "StageMaps": "csham.explain.explanation",
        "explain": "csham.explain.explanation",
        "explain_together": "csham.explain.explanation",
        "draw": "csham.explain.picture",
        "gate_table": "csham.explain.gates",
        "measure_faithfulness": "csham.explain.faithfulness",
        "measure_gates": "csham.explain.gates",
        "measure_runs": "csham.explain.gates",
        "overlay": "csham.explain.picture",
        "picture_bytes": "csham.explain.picture",
        "sample_test_images": "csham.explain.faithfulness",
        "trained_runs": "csham.explain.gates",
    },
)
make_callable(__name__)
