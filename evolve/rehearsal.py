"""Short runs of an objective in a worker, before a study: what the preflight learns from.

A run is stopped at its first report. Results are kept in the study's folder, so that going on with
a study does not try everything again.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evolve.config import StudyConfig
from evolve.errors import RunFailed
from evolve.machine import place_workers
from evolve.objective import Metrics
from evolve.record import trial_seed
from evolve.workers import Death, Job, Outcome, Report, WorkerPool

Evaluate = Callable[[dict[str, Any]], Metrics]


@contextmanager
def rehearsal(config: StudyConfig) -> Iterator[Evaluate | None]:
    """Give a function from all values to metrics, with one seed; None if nobody asked for it."""
    if not config.preflight:
        yield None
        return
    kept = _Kept(config)
    seen: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory(prefix="preflight-") as folder,
        WorkerPool(config.objective, place_workers(config.workers)[:1]) as pool,
    ):

        def evaluate(params: dict[str, Any]) -> Metrics:
            values = json.dumps(params, sort_keys=True, default=str)
            seen[values] += 1  # equal values are run again if the preflight asks for it
            key = f"{seen[values]}: {values}"
            if key not in kept.metrics:
                job_folder = Path(folder) / str(len(kept.metrics))
                kept.add(key, _run(pool, config, params, job_folder))
            return kept.metrics[key]

        yield evaluate


class _Kept:
    """Metrics of the runs that were done, in a file that belongs to one objective and seed."""

    def __init__(self, config: StudyConfig) -> None:
        self._path = config.directory / "preflight.json"
        self._owner = [config.objective, config.study.seed]
        self.metrics: dict[str, Metrics] = {}
        if self._path.is_file():
            tree = json.loads(self._path.read_text(encoding="utf-8"))
            self.metrics = tree["metrics"] if tree["owner"] == self._owner else {}

    def add(self, key: str, metrics: Metrics) -> None:
        self.metrics[key] = metrics
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(".preflight.partial")
        tree = {"owner": self._owner, "metrics": self.metrics}
        partial.write_text(json.dumps(tree), encoding="utf-8")
        partial.replace(self._path)


def _run(pool: WorkerPool, config: StudyConfig, params: dict[str, Any], folder: Path) -> Metrics:
    """Run the objective up to its first report. Raises: RunFailed if it fails."""
    folder.mkdir(parents=True)
    seed = trial_seed(config.study.seed, 0)
    pool.submit(Job(0, dict(params), seed, str(folder), 1, config.wanted))
    while True:
        for event in pool.events(1.0):
            if isinstance(event, Report):
                pool.answer(0, stop=True)
            elif isinstance(event, Death) or event.metrics is None:
                raise RunFailed(f"preflight: {event.reason}")
            elif isinstance(event, Outcome):
                return event.metrics
