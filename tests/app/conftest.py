"""Explanations made by hand, of which everything is known."""

import numpy as np
import pytest

from csham.explain import Explanation, StageMaps


@pytest.fixture(scope="session")
def explain_by_hand():
    """Function that makes an explanation: of weights of stages, and of a share for each class."""

    def make(stages=None, shares=None, **more):
        shares = shares or {"bee": 0.7, "ant": 0.2, "cow": 0.1}
        values = {
            "name": "bee.png",
            "network": "resnet20 + csham",
            "pixels": np.full((16, 16, 3), 128, np.uint8),
            "top": 5,
            "target": int(np.argmax(list(shares.values()))),
            "gradcam": np.eye(4, dtype=np.float32),
            "gradcam_layer": "layer3",
            "attention": "csham" if stages else "none",
            **more,
        }
        maps = {label: StageMaps(label, 8, {f"{label}.1": kinds}) for label, kinds in (stages or {}).items()}
        shares, classes = np.array(list(shares.values()), np.float32), list(shares)
        return Explanation(classes=classes, probabilities=shares, stages=maps, **values)

    return make


@pytest.fixture(scope="session")
def spatial():
    """Function that makes a map of 8 x 8: 0.4, and 0.6 in the given rows and columns."""

    def make(rows=slice(None), columns=slice(None), low=0.4, high=0.6):
        weights = np.full((8, 8), low, np.float32)
        weights[rows, columns] = high
        return weights

    return make
