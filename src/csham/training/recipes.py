"""Recipes: named sets of training settings, each of which a command line or a file may change in part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from csham._named import Named, table

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe(Named):
    """A named set of training settings.

    Attributes:
        batch_size: Images per step at most: a small training part gets fewer (:mod:`csham.training.steps`).
        settings: Fields of :class:`csham.training.config.TrainingSettings`.
        attached: Fields of :class:`csham.backbones.spec.NetworkSpec` for networks with attention, which say how it is
            attached.
        fine_tunes: True if it needs trained weights to start from.
    """

    batch_size: int = 128
    settings: dict[str, Any] = field(default_factory=dict)
    attached: dict[str, Any] = field(default_factory=dict)
    fine_tunes: bool = False


_ONE_CYCLE = "Smith and Topin, arXiv:1708.07120: one cycle of the learning rate"

RECIPES = table(
    [
        Recipe(
            "quick",
            "5 epochs, one cycle: a first look",
            _ONE_CYCLE,
            64,
            {"epochs": 5, "lr": 0.1, "schedule": "one-cycle", "weight_decay": 5e-4},
        ),
        Recipe(
            "fast",
            "30 epochs, one cycle: a sixth of the paper recipe's time",
            _ONE_CYCLE,
            128,
            {"epochs": 30, "lr": 0.2, "schedule": "one-cycle", "weight_decay": 5e-4},
        ),
        Recipe(
            "paper",
            "200 epochs, SGD 0.1 with Nesterov 0.9, divided by 5 at 60, 120 and 160: the published tables",
            "DeVries and Taylor, arXiv:1708.04552, section 4.2; github.com/weiaicunzai/pytorch-cifar100",
            128,
            {
                "epochs": 200,
                "lr": 0.1,
                "schedule": "steps",
                "weight_decay": 5e-4,
                "milestones": (0.3, 0.6, 0.8),
                "decay": 0.2,
                "warmup_epochs": 1.0,
            },
        ),
        # By benchmarks/fine_tuning.py, three seeds of Caltech-101 from weak weights: SGD is ahead of AdamW by four
        # points. A backbone at 0.1 measured the same as at 0.03, which is gentler to good weights.
        Recipe(
            "finetune",
            "20 epochs from trained weights, SGD, cosine, new parts at 3 times the rate, attention closed at first",
            "Kornblith et al., arXiv:1805.08974 (SGD with Nesterov's momentum); Loshchilov and Hutter, "
            "arXiv:1608.03983 (cosine); Kumar et al., arXiv:2202.10054 (the head first)",
            64,
            {
                "epochs": 20,
                "lr": 0.1,
                "backbone_lr": 0.03,
                "weight_decay": 1e-4,
                "schedule": "cosine",
                "warmup_epochs": 1.0,
                "freeze_backbone": 1,
            },
            {"gated": True},
            fine_tunes=True,
        ),
    ]
)
