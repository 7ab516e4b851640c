"""Costs of networks: parameters, floating-point operations, milliseconds, memory; one or many side by side.

``flops`` counts, ``passes`` are the two things that are timed, with their milliseconds and their peak of memory,
``task`` is one of them of one network, ``comparison`` measures many in turns, ``result`` is what comes out. Needs only
torch and numpy; takes any ``nn.Module`` and knows no names of backbones. Start with :func:`cost`, which calling this
package does too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names, make_callable

if TYPE_CHECKING:
    from csham.cost.comparison import Comparison, Settings, cost
    from csham.cost.flops import Flops, count_flops
    from csham.cost.result import Cost, Spread

__all__ = ["Comparison", "Cost", "Flops", "Settings", "Spread", "cost", "count_flops"]

__getattr__ = lazy_names(
    __name__,
    {
        "Comparison": "csham.cost.comparison",
        "Settings": "csham.cost.comparison",
        "Flops": "csham.cost.flops",
        "count_flops": "csham.cost.flops",
        "cost": "csham.cost.comparison",
        "Cost": "csham.cost.result",
        "Spread": "csham.cost.result",
    },
)

make_callable(__name__)
