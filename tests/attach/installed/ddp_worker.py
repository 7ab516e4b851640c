"""One of two gloo processes: forward and backward of half a batch, gradients written by rank 0."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import csham
from csham.backbones import CifarResNet

rendezvous, rank, folder, side = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
torch.manual_seed(1)
model = CifarResNet(20, num_classes=5)
csham.attach(model, "csham_linear", strategy="transfer")
parallel = torch.nn.parallel.DistributedDataParallel(model.eval())
x = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(7))[2 * rank : 2 * rank + 2]
for _ in range(2):  # the second pass fails if DDP found a parameter without gradient in the first
    model.zero_grad()
    (2 * parallel(x).square().sum()).backward()  # DDP averages over processes; the test sums over images
if rank == 0:
    torch.save({name: p.grad for name, p in model.named_parameters()}, folder / "gradients.pt")
dist.destroy_process_group()
