"""One report of a study with everything that can go wrong in names, shared by all that look at it."""

import pytest
from study_cases import HOSTILE, write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Six networks, three seeds; one run failed, one is missing."""
    return write_study(
        tmp_path_factory.mktemp("studies") / "hostile",
        classes=HOSTILE,
        epochs=10,
        failed={(3, 2): "<img src=x onerror=alert(1)> out of memory"},
        missing={(2, 2)},
    )


@pytest.fixture(scope="session")
def report(study):
    """Its report."""
    from csham.report.study_report import write_report

    return write_report(study)


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures' files without content, which takes most of a report's time to make."""
    monkeypatch.setattr("csham.report.study_pictures.png_bytes", lambda figure: b"")
    monkeypatch.setattr("csham.report.study_pictures.svg_bytes", lambda figure: b"")
