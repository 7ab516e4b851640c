"""One addition of each kind, outside the package; run as a module it is a worker of a study that knows them."""

import gzip
import io
import statistics
import sys

import numpy as np
import torch

from csham.data import sources
from csham.data.sources import Chunk, Images, Listing, Source
from csham.export.files import write_pt2
from csham.export.formats import FORMATS, Format
from csham.layers import Gate
from csham.layers.names import ATTENTIONS, AttentionName
from csham.study import worker
from csham.study.comparison_statistics import STATISTICS, Statistic
from csham.training.metrics import METRICS, Metric, StudyColumn


class Mean(Gate):
    """Scale each channel by its mean's sigmoid."""

    def __init__(self, channels, power=1, *, device=None, dtype=None):
        super().__init__(channels)
        self.power = power

    def weights(self, x):
        self._check(x)
        return x.mean((2, 3)).sigmoid() ** self.power


class Stripes(Source):
    """Two classes of images, of which each is learnt at once."""

    name, location, fingerprint = "stripes", "stripes:", "stripes 2"

    @classmethod
    def find(cls, data):
        return cls() if data == cls.location else None

    def default_size(self):
        return 32

    def load(self, work):
        images = np.random.default_rng(0).integers(0, 99, (60, 32, 32, 3)).astype(np.uint8)
        images[::2, ::2] += 99
        images[1::2, :, ::2] += 99
        listing = Listing("stripes", ("across", "along"), [], np.arange(60) % 2, np.zeros(60, np.uint8))
        return Images(listing, lambda most: iter([Chunk(range(60), images)]), decoded=True, flip=False)


def write_packed(content, path):
    write_pt2(content, path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def open_packed(path):
    return torch.export.load(io.BytesIO(gzip.decompress(path.read_bytes()))).module()


ATTENTION = AttentionName(
    "mean", "gate of channel means", "no paper", layer=f"{__name__}:Mean", formula="0", params=0, maps=("channel",)
)
METRIC = Metric(
    name="missed",
    title="missed",
    label="images missed",
    summary="Share of the images that are named wrong.",
    compute=lambda predictions, classes: 1 - predictions.hits[:, 0].mean(),
    unit="%",
    better="lower",
    study=StudyColumn("missed", "missed", "Of the last epoch."),
)
MEDIAN = Statistic(
    name="median",
    title="median",
    help="Of the differences.",
    compute=lambda differences: statistics.median(differences) if differences else None,
    shown="difference",
)
RANGE = Statistic(
    name="range",
    title="least, most",
    help="Of the differences.",
    compute=lambda differences: (min(differences), max(differences)) if differences else None,
    shown="interval",
)
FORMAT = Format("packed", ".gz", f"{__name__}:write_packed", f"{__name__}:open_packed")


def add():
    """Put each where the package lists its own."""
    sources.SOURCES.insert(0, Stripes)
    for names, *entries in (
        (ATTENTIONS, ATTENTION),
        (METRICS, METRIC),
        (STATISTICS, MEDIAN, RANGE),
        (FORMATS, FORMAT),
    ):
        names.update({entry.name: entry for entry in entries})


if __name__ == "__main__":
    add()
    sys.exit(worker.main())
