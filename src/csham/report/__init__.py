"""Reports: figures and files made from what was measured.

``cost_figure`` draws what attentions cost, ``tables`` writes tables and rows to files, ``evaluation`` writes and draws
what one run's network answers. Of a study's report,
``study_report`` is the place to start: it reads the folder (``study_material``), makes tables and pictures and puts
them on a page (``study_page``, ``templates/``). May import everything below the command line, and matplotlib.
"""

from __future__ import annotations

from csham._lazy import lazy_names
from csham.report.cost_figure import write_cost_figure
from csham.report.tables import write_csv

__all__ = ["write_cost_figure", "write_csv"]

__getattr__ = lazy_names(__name__, {})
