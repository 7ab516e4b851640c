"""One of two processes that torchrun starts: runs, one that goes on, one that stops, and shared batch norms."""

import json
import signal
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from csham.backbones import create_model
from csham.cli import main
from csham.training.interrupt import TimeLimit
from csham.training.progress import QuietProgress
from csham.training.shared_norm import share_batch_norms


def small_network():
    torch.manual_seed(0)
    return create_model("resnet14", attention="csham", num_classes=5, image_size=16).double()


def trained(network, model, images, labels):
    """Two steps; what they leave in float64, where rounding leaves differences of 1e-12 and a wrong statistic 1e-2."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return {name: value.detach() for name, value in network.state_dict().items()}


def batch():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 16, 16, generator=draw).double(), torch.arange(8) % 5


def stopped(words, steps):
    """Run until the first process, which alone is told of steps, gets a signal; return the exit code."""

    def step(self, *_):
        self.told = getattr(self, "told", 0) + 1
        if self.told == steps:
            signal.raise_signal(signal.SIGINT)

    QuietProgress.step = step
    return main(words)


def stopped_for_time(words, steps):
    """Run until the clock of the first process, which alone is told of steps, says that the time is over."""

    def step(self, *_):
        self.told = getattr(self, "told", 0) + 1
        if self.told == steps:
            TimeLimit.left = lambda limit: -1.0

    QuietProgress.step = step
    return main([*words, "--minutes", "60"])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    words = json.loads((folder / "words.json").read_text())
    torch.set_num_threads(1)
    codes = [main(line) for line in words["to the end"]]
    assert codes == [0] * len(codes), codes
    rank = torch.distributed.get_rank()
    assert stopped(words["stopped"], steps=7) == 130
    assert stopped_for_time(words["out of time"], steps=7) == 142
    images, labels = batch()
    network = small_network()
    assert share_batch_norms(network, torch.device("cpu")) == []
    mine = slice(4 * rank, 4 * rank + 4)
    state = trained(network, nn.parallel.DistributedDataParallel(network), images[mine], labels[mine])
    if rank == 0:
        torch.save(state, folder / "shared.pt")
    torch.distributed.destroy_process_group()
