"""What this machine offers to trials: cores, memory, GPUs; found without torch."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a worker imports this file, and should start without Optuna
    from evolve.config import WorkerOptions

MEMORY_PER_WORKER = 2 * 2**30  # bytes: torch with a small model, batch and loader
MOST_WORKERS = 8  # on a CPU, if the count is auto

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Placement:
    """Where one worker runs: its devices, its threads, and the one core it is pinned to, if any."""

    name: str
    devices: tuple[str, ...]
    threads: int
    core: int | None = None


def place_workers(options: "WorkerOptions") -> list[Placement]:
    """Share the machine among workers, so that their threads together fit its cores."""
    cores, gpus = usable_cores(), visible_gpus()
    count = options.count if isinstance(options.count, int) else _automatic(cores, gpus, options)
    threads = max(1, len(cores) // count)
    pinned = threads == 1 and 1 < count == len(cores)
    return [
        Placement(
            name=f"worker-{index}",
            devices=(f"cuda:{index % gpus}",) if gpus else ("cpu",),
            threads=threads,
            core=cores[index] if pinned else None,
        )
        for index in range(count)
    ]


def usable_cores() -> list[int]:
    """Return the cores this process may use: its affinity, cut to a container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = cores[: max(1, int(quota[0]) // int(quota[1]))]
    return cores


def free_memory() -> int | None:
    """Return the bytes that new processes may take, or None where nobody says."""
    limits = []
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    limit, used = (_first_line(f"/sys/fs/cgroup/memory.{key}") for key in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        limits.append(int(limit) - int(used))
    return min(limits, default=None)


def total_memory() -> int | None:
    """Return the bytes of this machine or container, or None where nobody says."""
    limits = [
        int(line.split()[1]) * 1024
        for line in _text("/proc/meminfo").splitlines()
        if line.startswith("MemTotal:")
    ]
    limit = _first_line("/sys/fs/cgroup/memory.max")
    return min([*limits, *([int(limit)] if limit.isdigit() else [])], default=None)


class Load:
    """How busy this machine is; what nobody says is left out. Reading takes under a millisecond."""

    def __init__(self) -> None:
        self._before = _cpu_times()
        self._gpus: list[Any] | None = None

    def text(self) -> str:
        """Return CPU, memory and GPU in words; the CPU since the last call."""
        return ", ".join(part for part in (self._cpu(), _memory(), self._gpu()) if part)

    def _cpu(self) -> str:
        before, now = self._before, _cpu_times()
        self._before = now
        if before is None or now is None or now[1] <= before[1]:
            return f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        return f"CPU {100 * (now[0] - before[0]) / (now[1] - before[1]):.0f} %"

    def _gpu(self) -> str:
        """Return the use of each GPU, if pynvml is there to ask; `nvidia-smi` takes too long."""
        if self._gpus == []:
            return ""
        try:
            import pynvml

            if self._gpus is None:
                pynvml.nvmlInit()
                count = pynvml.nvmlDeviceGetCount()
                self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
            shares = [pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu for gpu in self._gpus]
        except Exception:  # no such package, no driver, a card that does not say
            self._gpus, shares = [], []
        return f"GPU {', '.join(f'{share} %' for share in shares)}" if shares else ""


def _cpu_times() -> tuple[float, float] | None:
    """Return busy and total time of all cores, in ticks. Source: proc(5), /proc/stat."""
    ticks = [float(number) for number in _first_line("/proc/stat").split()[1:9]]
    if len(ticks) < 8:
        return None
    idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
    return sum(ticks) - idle, sum(ticks)


def _memory() -> str:
    free, total = free_memory(), total_memory()
    if free is None or total is None:
        return ""
    return f"memory {(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB"


def visible_gpus() -> int:
    """Return the number of NVIDIA GPUs that a process started now would see."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and not chosen.strip(", "):
        return 0
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    lines = listing.stdout.splitlines() if listing.returncode == 0 else []
    present = sum(line.startswith("GPU ") for line in lines)
    if chosen is None:
        return present
    wanted = [entry.strip() for entry in chosen.split(",")]
    if "-1" in wanted:  # CUDA hides it and all behind it
        wanted = wanted[: wanted.index("-1")]
    return min(present, len(wanted)) if present else 0


def _automatic(cores: list[int], gpus: int, options: "WorkerOptions") -> int:
    if gpus:
        return gpus * options.per_device
    memory = free_memory()
    fitting = len(cores) if memory is None else memory // MEMORY_PER_WORKER
    return max(1, min(len(cores), fitting, MOST_WORKERS))


def _first_line(path: str) -> str:
    return (_text(path).splitlines() or [""])[0].strip()


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
