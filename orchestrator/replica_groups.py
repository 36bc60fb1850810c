"""Ray Train's replica groups, without torchft: each worker is a group of its own, replaced without the others.

Train (2.60) has them for `TorchftConfig`; what makes them is a backend that says so. A parameter server's workers have
no process group, so there is nothing to set up.
"""

from ray.train import BackendConfig
from ray.train.backend import Backend


class _Backend(Backend):
    has_replica_groups: bool = True


class ReplicaGroups(BackendConfig):
    """For `DataParallelTrainer(backend_config=...)`."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend
