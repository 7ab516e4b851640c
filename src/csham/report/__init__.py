"""Reports: figures and files made from what was measured.

``cost_figure`` draws what attentions cost, ``csv_rows`` writes rows that can be believed alone. May import everything
below the command line, and matplotlib.
"""

from __future__ import annotations

from csham.report.cost_figure import write_cost_figure
from csham.report.csv_rows import write_csv

__all__ = ["write_cost_figure", "write_csv"]
