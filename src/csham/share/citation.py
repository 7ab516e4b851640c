"""References for users of a shared network to cite, as CITATION.cff has them."""

from __future__ import annotations

from csham._version import __version__

__all__ = ["PAPER", "SOFTWARE"]

PAPER = """@inproceedings{pan2022csham,
  title     = {A Channel-Spatial Hybrid Attention Mechanism using Channel Weight Transfer Strategy},
  author    = {Pan, Jie and Hu, Haigen and Liu, Aizhu and Zhou, Qianwei and Guan, Qiu},
  booktitle = {2022 26th International Conference on Pattern Recognition (ICPR)},
  year      = {2022},
  doi       = {10.1109/ICPR56361.2022.9956146},
}"""

SOFTWARE = f"""@software{{csham,
  title   = {{csham: channel-spatial hybrid attention for convolutional networks}},
  author  = {{{{The csham developers}}}},
  version = {{{__version__}}},
  year    = {{2026}},
}}"""
