"""Who runs a study's trials: processes of this machine, or a cluster."""

from collections.abc import Iterator
from contextlib import contextmanager

from evolve.config import StudyConfig
from evolve.jobs import Pool
from evolve.machine import Placement, place_workers
from evolve.workers import WorkerPool


@contextmanager
def open_pool(config: StudyConfig) -> Iterator[tuple[Pool, float]]:
    """Give those who run trials, and how many GPUs a trial has. Raises: ConfigError."""
    if config.workers.engine == "ray":
        from evolve.cluster import RayPool

        with RayPool(config.objective, config.workers) as cluster:
            yield cluster, cluster.gpus
        return
    placements = place_workers(config.workers)
    with WorkerPool(config.objective, placements) as pool:
        yield pool, gpus_of_a_trial(placements)


def gpus_of_a_trial(placements: list[Placement]) -> float:
    """Return how many GPUs a trial has: a share of one where workers share it, 0 on a CPU."""
    devices = {device for placement in placements for device in placement.devices}
    return sum(device != "cpu" for device in devices) / len(placements)
