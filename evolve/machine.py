"""What this machine offers to trials: cores, memory, GPUs; found without torch."""

import os
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.errors import ConfigError

if TYPE_CHECKING:  # a worker imports this file, and should start without Optuna
    from evolve.worker_options import WorkerOptions

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
    """Share the machine among workers, so that their threads together fit its cores.

    Raises: ConfigError if a trial wants more devices than there are.
    """
    cores, gpus, each = usable_cores(), visible_gpus(), options.devices_per_trial
    if gpus and each > gpus:
        raise ConfigError(f"workers.devices_per_trial={each}: this machine has {gpus} GPUs")
    groups = [tuple(f"cuda:{i * each + k}" for k in range(each)) for i in range(gpus // each)]
    groups = groups or [("cpu",) * each]
    found = _automatic(cores, len(groups) if gpus else 0, options)
    count = options.count if isinstance(options.count, int) else found
    threads = max(1, len(cores) // count)
    pinned = threads == 1 and 1 < count == len(cores)
    return [
        Placement(
            name=f"worker-{index}",
            devices=groups[index % len(groups)],
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


def memory_of(pid: int) -> int:
    """Return the bytes that a process and its children hold in memory; 0 where nobody says."""
    own = _text(f"/proc/{pid}/statm").split()
    children = _text(f"/proc/{pid}/task/{pid}/children").split()
    held = int(own[1]) * os.sysconf("SC_PAGE_SIZE") if len(own) > 1 else 0
    return held + sum(memory_of(int(child)) for child in children)


def free_gpu_memory() -> dict[str, int]:
    """Return the free MiB of each GPU by its name (`cuda:0`); empty where nobody says."""
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return {f"cuda:{index}": int(line) for index, line in enumerate(said.splitlines())}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def process_name(pid: int | None = None) -> str:
    """Return a name that no other process has, here or elsewhere: host, boot, space, pid, start."""
    pid = os.getpid() if pid is None else pid
    boot, space = _first_line("/proc/sys/kernel/random/boot_id")[:8], ""
    with suppress(OSError):
        space = str(os.stat("/proc/self/ns/pid").st_ino)
    return f"{socket.gethostname()}/{boot}/{space}/{pid}/{_start_of(pid)}"


def is_gone(name: str) -> bool:
    """Return whether a process that `process_name` named is dead for sure; only its host knows."""
    parts, ours = name.split("/"), process_name().split("/")
    if len(parts) != 5 or parts[0] != ours[0]:
        return False
    if parts[1] != ours[1]:  # the host was started anew since then
        return bool(parts[1] and ours[1])
    return parts[2] == ours[2] and parts[3].isdigit() and parts[4] != _start_of(int(parts[3]))


def short_name(name: str) -> str:
    """Return the name of a process as a person would say it."""
    parts = name.split("/")
    return f"process {parts[3]} on {parts[0]}" if len(parts) == 5 else name


def _start_of(pid: int) -> str:
    """Return when a process began, in ticks since the boot; empty if there is none (a zombie)."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


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


def _automatic(cores: list[int], groups: int, options: "WorkerOptions") -> int:
    """Return how many workers fit; `groups` are the sets of GPUs that a trial each may have."""
    memory = free_memory()
    wanted = groups * options.per_device
    wanted = wanted or min(len(cores) // options.devices_per_trial, MOST_WORKERS)
    return max(1, wanted if memory is None else min(wanted, memory // MEMORY_PER_WORKER))


def _first_line(path: str) -> str:
    return (_text(path).splitlines() or [""])[0].strip()


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
