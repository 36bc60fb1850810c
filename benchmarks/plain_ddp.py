"""What a user would write instead: torch, DistributedDataParallel, gloo or NCCL, batches in memory, nothing else.

    python -m benchmarks.plain_ddp --workers 2 --steps 60

One process a worker; prints images/s of the steps after the warm-up. The network, its optimizer, the memory
format, the batches and the threads a worker has are those of the run that it is compared with. It takes no
accuracy and reads its loss once, at the end: a leaner loop than most users have.
"""

import argparse
import os
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from orchestrator.models.small import SmallResNet

IMAGE_SIZE, CHANNELS, CLASSES, DISTINCT_BATCHES = 32, 3, 10, 4
WARM_UP_STEPS = 10


def batch(number: int, size: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (size, H, W, C) uint8 and labels (size,) of batch `number` of a rank; a few distinct ones recur."""
    draws = np.random.default_rng((number % DISTINCT_BATCHES, rank))
    return (
        draws.integers(0, 256, (size, IMAGE_SIZE, IMAGE_SIZE, CHANNELS), np.uint8),
        draws.integers(0, CLASSES, size),
    )


def train(rank: int, args: argparse.Namespace, rate_file: str) -> None:
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // args.workers))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    torch.manual_seed(0)
    model = SmallResNet(CLASSES, CHANNELS, IMAGE_SIZE, width=args.width)
    model = model.to(device).to(memory_format=torch.channels_last)
    if args.workers > 1:
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=args.workers)
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    share = args.batch // args.workers
    batches = [tuple(map(torch.from_numpy, batch(number, share, rank))) for number in range(DISTINCT_BATCHES)]
    mean, std = (torch.full((1, CHANNELS, 1, 1), value, device=device) for value in (0.5, 0.25))
    for step in range(WARM_UP_STEPS + args.steps):
        if step == WARM_UP_STEPS:
            started = time.time()
        pixels, labels = batches[step % DISTINCT_BATCHES]
        images = (pixels.to(device).permute(0, 3, 1, 2).float() / 255 - mean) / std
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels.to(device))
        loss.backward()
        optimizer.step()
    assert loss.isfinite().item()  # and waits for the device
    if rank == 0:
        Path(rate_file).write_text(str(args.steps * args.batch / (time.time() - started)))
    if args.workers > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128, help="the global batch")
    parser.add_argument("--width", type=int, default=32)
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    with tempfile.NamedTemporaryFile() as rate_file:
        torch.multiprocessing.spawn(train, (args, rate_file.name), args.workers)
        print(Path(rate_file.name).read_text())


if __name__ == "__main__":
    main()
