"""Many runs: a study's plan, its store, the engines that run its cells, and the statistics of what they found.

- Whole: ``run``, a comparison in one call, and ``plan``, how long it will take.
- Plan: ``grid``, which ``setup`` makes, with what ``probe``, ``costs`` and ``budget`` measure.
- Store: ``store``, with ``study_file`` and ``record``.
- Engines: ``engines``, whose ``worker`` runs one ``cell`` after another.
- Statistics: ``statistics``.
- Results: ``results`` makes ``findings`` of records, ``headline`` the words on them.

Uses :mod:`csham.training` for single runs; the report and the command line build on this. Start with
:mod:`csham.study.grid` for what a study is and :mod:`csham.study.store` for what it leaves behind.
"""

from csham._lazy import lazy_names

__getattr__ = lazy_names(__name__, {})
