"""Adafactor on the simulated GPU, in a process that has no row of a parameter."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import optgen
from virtual_gpu.device import Device

dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
mesh = init_device_mesh("cpu", (2,))
params = []
for shape, local in (((1, 600), (0, 600)), ((5, 6), (2, 6))):
    part = torch.ones(local)
    whole = DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=shape, stride=(shape[1], 1))
    params.append(nn.Parameter(whole))
with Device() as gpu:
    optimizer = optgen.Adafactor(params, backend="triton")
    for _ in range(2):
        for p in params:
            p.grad = p.detach().clone()
        optimizer.step()
assert gpu.launches
assert not gpu.errors
assert not gpu.harmful, gpu.harmful
dist.destroy_process_group()
