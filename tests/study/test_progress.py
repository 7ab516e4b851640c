"""What is said while a study runs."""

import io

import pytest
from rich.console import Console

from csham.study.progress import BarStudyProgress, create_study_progress


@pytest.mark.parametrize(("rate", "shown"), [(0.0573, "0.057 images/s"), (9.94, "9.9 images/s"), (1417.4, "1417 ")])
def test_the_bar_of_a_slow_cell_does_not_stand_still_in_words(rate, shown):
    bars = create_study_progress(console=Console(file=io.StringIO(), force_terminal=True, width=120))
    assert isinstance(bars, BarStudyProgress)
    bars.begin(2, 0)
    bars.cell(0, "resnet20, seed 0", "epoch 1/2", 0.25, rate)
    bars.close()
    assert f"epoch 1/2  {shown}" in bars.console.file.getvalue()
