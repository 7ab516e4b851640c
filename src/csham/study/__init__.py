"""Many runs: the grid of a study, its store, the engines that run its cells, and the statistics of what they found.

Uses :mod:`csham.training` for single runs; the report and the command line build on this. Start with
:mod:`csham.study.grid` for what a study is and :mod:`csham.study.store` for what it leaves behind.
"""
