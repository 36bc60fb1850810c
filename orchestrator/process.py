"""A process that computes as the plan says: its threads, its memory."""

import torch

from kernels.allocator import keep_freed_memory
from orchestrator.plan import Plan


def settle(plan: Plan) -> None:
    """Take the plan's threads for a worker, and keep freed memory if it computes on a CPU."""
    torch.set_num_threads(plan.threads_per_worker)
    if plan.device == "cpu":
        keep_freed_memory()
