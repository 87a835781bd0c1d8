"""`evolve.yaml` as frozen dataclasses; an unknown key is an error with a suggestion."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from evolve.errors import ConfigError, did_you_mean
from evolve.front import CAPABLE, FITNESS, MAXIMIZE, MINIMIZE
from evolve.limits import Limit
from evolve.reader import Reader
from evolve.space import Params, Space, finite_number
from evolve.worker_options import WorkerOptions, read_size, read_workers
from evolve.yamlfile import parse_value, read_yaml

STUDIES = Path("runs/evolve")  # one folder a study, under the working directory
DEFAULT_METRIC = "fitness"
DEFAULT_STRATEGY = "guided"


@dataclass(frozen=True)
class StudyOptions:
    """Which study, what ends it (whichever comes first), and where Optuna keeps it.

    `early_stop` lets the strategy end the search when going on does not pay; `pick` is the trial to
    recommend instead of the one that the study would. `max_disk` bytes are what the study's folder
    may hold; new trials wait while it holds more.
    """

    name: str = "study"
    generations: int = 300
    hours: float | None = None
    gpu_hours: float | None = None
    early_stop: bool = True
    seed: int = 0
    storage: str = "sqlite:///runs/evolve.db"
    pick: int | None = None
    max_disk: int | None = None


@dataclass(frozen=True)
class Plugin:
    """Something chosen by name, with its options: a strategy, a pruning rule."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfirmOptions:
    """How many finalists are trained again, and with how many new seeds each; 0 is off."""

    finalists: int = 3
    seeds: int = 3


@dataclass(frozen=True)
class TrackingOptions:
    """The MLflow store; `uri` None is no tracking."""

    uri: str | None = "sqlite:///runs/mlflow.db"
    experiment: str = "evolve"


@dataclass(frozen=True)
class Start:
    """The start values: `values` as they stand, and the section `train`; `source` is a label."""

    values: Params = field(default_factory=dict)
    train: Params = field(default_factory=dict)
    source: str = "start"


@dataclass(frozen=True)
class StudyConfig:
    """A whole evolve.yaml. `fitness` maps metric names to weights; `source` names the file.

    `objectives` maps names to directions, fitness first; empty is fitness alone. `preflight` asks
    for a short probe of an objective that cannot say itself which genes have no effect.
    """

    objective: str
    space: Space
    study: StudyOptions = field(default_factory=StudyOptions)
    settings: Params = field(default_factory=dict)
    fitness: dict[str, float] = field(default_factory=lambda: {DEFAULT_METRIC: 1.0})
    strategy: Plugin = field(default_factory=lambda: Plugin(DEFAULT_STRATEGY))
    start: Start = field(default_factory=Start)
    pruning: Plugin = field(default_factory=lambda: Plugin("none"))
    confirm: ConfirmOptions = field(default_factory=ConfirmOptions)
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    limits: dict[str, Limit] = field(default_factory=dict)
    objectives: dict[str, str] = field(default_factory=dict)
    warm_start: str | None = None
    preflight: bool = False
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    source: str = "evolve.yaml"

    @property
    def directory(self) -> Path:
        """Folder of the study's files."""
        return STUDIES / self.study.name

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the metrics that evaluate has to return."""
        names = dict.fromkeys([*self.fitness, *self.objectives, *self.limits])
        own = FITNESS in self.fitness
        return tuple(name for name in names if name != FITNESS or own)

    def identity(self) -> dict[str, Any]:
        """Return what must stay the same for trials of one study to be comparable (JSON types)."""
        later = {  # keys that older studies do not have
            "limits": {name: asdict(limit) for name, limit in self.limits.items()},
            "objectives": self.objectives,
        }
        return {
            "objective": self.objective,
            "settings": self.settings,
            "fitness": self.fitness,
            "start": {"values": self.start.values, "train": self.start.train},
            "space": {name: _bounds(keys) for name, keys in self.space.to_dict().items()},
            "seed": self.study.seed,
            **{key: value for key, value in later.items() if value},
        }


SECTIONS = ("metric", *(f.name for f in fields(StudyConfig) if f.name != "source"))


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> StudyConfig:
    """Read evolve.yaml and apply `key.name=value` overrides. Raises: ConfigError."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; name the study's file with --config")
    tree = read_yaml(path)
    for override in overrides:
        _override(tree, override)
    return parse_config(tree, path)


def parse_config(tree: Mapping[str, Any], path: Path = Path("evolve.yaml")) -> StudyConfig:
    """Check a tree read from YAML; `path` is named in messages. Raises: ConfigError."""
    for key in tree:
        if key not in SECTIONS:
            raise ConfigError(f"{path}: {key} is not a section{did_you_mean(str(key), SECTIONS)}")
    for key in ("objective", "space"):
        if not tree.get(key):
            raise ConfigError(f"{path}: {key} is missing")
    section = Reader(path, tree)
    objectives, start = _objectives(section), _start(section)
    settings = section.anything("settings")
    constants = {**start.train, **start.values, **settings}
    space = {name: keys for name, keys in section.anything("space").items() if keys is not None}
    return StudyConfig(
        objective=section.text("objective"),
        space=Space.from_dict(space, str(path), constants),
        study=_study(section),
        settings=settings,
        fitness=_fitness(section),
        strategy=_strategy(section, objectives),
        start=start,
        pruning=_pruning(section, objectives),
        confirm=_confirm(section),
        workers=read_workers(section),
        limits=_limits(section),
        objectives=objectives,
        warm_start=section.text("warm_start") if section.tree.get("warm_start") else None,
        preflight=section.boolean("preflight", False),
        tracking=_tracking(section),
        source=str(path),
    )


def _study(section: Reader) -> StudyOptions:
    study = section.mapping("study", (f.name for f in fields(StudyOptions)))
    defaults = StudyOptions()
    name = study.text("name", defaults.name)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ConfigError(
            f"{study.where('name')}={name!r} names a folder: use letters, digits, dot, - and _"
        )
    return StudyOptions(
        name=name,
        generations=study.integer("generations", defaults.generations, 0),
        hours=study.positive("hours"),
        gpu_hours=study.positive("gpu_hours"),
        early_stop=study.boolean("early_stop", defaults.early_stop),
        seed=study.integer("seed", defaults.seed, 0),
        storage=study.text("storage", defaults.storage),
        pick=None if study.tree.get("pick") is None else study.integer("pick", 0, 0),
        max_disk=read_size(study, "max_disk"),
    )


def _fitness(section: Reader) -> dict[str, float]:
    if section.tree.get("fitness") and section.tree.get("metric"):
        raise ConfigError(f"{section.path}: give fitness (weights) or metric (one name), not both")
    weights = section.anything("fitness") or {section.text("metric", DEFAULT_METRIC): 1.0}
    checked = {
        name: finite_number(weight, section.where(f"fitness.{name}"))
        for name, weight in weights.items()
    }
    if not any(checked.values()):
        raise ConfigError(f"{section.where('fitness')}: all weights are 0")
    return checked


def _plugin(section: Reader, key: str, default: str) -> Plugin:
    value = section.tree.get(key)
    if isinstance(value, Mapping):
        options = section.anything(key)
        name = Reader(section.path, options, f"{key}.").text("name", default)
        return Plugin(name, {option: options[option] for option in options if option != "name"})
    return Plugin(section.text(key) if value is not None else default)


def _limits(section: Reader) -> dict[str, Limit]:
    """Return the limits by metric: a number is a maximum, `{min: , max: }` says it all."""
    limits = {}
    for name, value in section.anything("limits").items():
        where = section.where(f"limits.{name}")
        if not isinstance(value, Mapping):
            limits[name] = Limit(max=finite_number(value, where))
            continue
        for key in value:
            if key not in ("min", "max"):
                raise ConfigError(f"{where}.{key} is not a key{did_you_mean(key, ('min', 'max'))}")
        if not value:
            raise ConfigError(f"{where} needs min or max")
        bounds = {key: finite_number(bound, f"{where}.{key}") for key, bound in value.items()}
        limits[name] = Limit(**bounds)
    return limits


def _objectives(section: Reader) -> dict[str, str]:
    """Return the directions by objective, fitness first; every other one is minimised if not said.

    One objective alone is the fitness of an ordinary study.
    """
    listed = section.tree.get("objectives") or []
    where = section.where("objectives")
    if not isinstance(listed, list):
        raise ConfigError(f"{where} must be a list such as [fitness, latency_ms], got {listed!r}")
    found: dict[str, str] = {}
    for entry in listed:
        given = entry if isinstance(entry, Mapping) else {entry: None}
        for name, direction in given.items():
            usual = MAXIMIZE if name == FITNESS else MINIMIZE
            if name in found or not isinstance(name, str):
                raise ConfigError(f"{where}: {name!r} must be a name, and stand there once")
            if direction not in (None, MAXIMIZE, MINIMIZE):
                raise ConfigError(f"{where}.{name} must be {MAXIMIZE} or {MINIMIZE}")
            found[name] = direction or usual
    if found and found.get(FITNESS) != MAXIMIZE:
        raise ConfigError(
            f"{where} must hold {FITNESS}, which is maximised; fitness: says what it is"
        )
    others = sorted(name for name in found if name != FITNESS)
    return {FITNESS: MAXIMIZE, **{name: found[name] for name in others}} if others else {}


def _strategy(section: Reader, objectives: Mapping[str, str]) -> Plugin:
    plugin = _plugin(section, "strategy", CAPABLE[0] if objectives else DEFAULT_STRATEGY)
    if objectives and plugin.name not in CAPABLE and ":" not in plugin.name:
        raise ConfigError(
            f"{section.where('strategy')}: {plugin.name} has one objective;"
            f" with several take {', '.join(CAPABLE)} or module:Class"
        )
    return plugin


def _pruning(section: Reader, objectives: Mapping[str, str]) -> Plugin:
    plugin = _plugin(section, "pruning", "none")
    if objectives and plugin.name != "none":
        raise ConfigError(
            f"{section.where('pruning')}: {plugin.name} cannot stop trials of several objectives:"
            " take none"
        )
    return plugin


def _start(section: Reader) -> Start:
    value = section.tree.get("start")
    if value is None:
        return Start()
    if isinstance(value, Mapping):
        return _start_of(section.anything("start"), section.where("start"))
    name = section.text("start")
    for folder in (section.path.parent, Path()):
        if (folder / name).is_file():
            return _start_of(read_yaml(folder / name), str(folder / name))
    raise ConfigError(f"{section.where('start')}: there is no file {name}")


def _start_of(tree: dict[str, Any], source: str) -> Start:
    train = tree.pop("train", None) or {}
    if not isinstance(train, Mapping):
        raise ConfigError(f"{source}: train must be a mapping, got {train!r}")
    return Start(values=tree, train=dict(train), source=source)


def _confirm(section: Reader) -> ConfirmOptions:
    if section.tree.get("confirm", {}) in (0, None, False):
        return ConfirmOptions(finalists=0, seeds=0)
    confirm = section.mapping("confirm", (f.name for f in fields(ConfirmOptions)))
    return ConfirmOptions(confirm.integer("finalists", 3, 0), confirm.integer("seeds", 3, 0))


def _tracking(section: Reader) -> TrackingOptions:
    value = section.tree.get("tracking", {})
    if value is None or value is False or value == "none":
        return TrackingOptions(uri=None)
    tracking = section.mapping("tracking", (f.name for f in fields(TrackingOptions)))
    defaults = TrackingOptions()
    experiment = tracking.text("experiment", defaults.experiment)
    if tracking.tree.get("uri", "") in (None, False, "none"):
        return TrackingOptions(None, experiment)
    return TrackingOptions(tracking.text("uri", defaults.uri or ""), experiment)


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one `dotted.name=value` in the tree; missing mappings on the way are made."""
    dotted, equals, text = override.partition("=")
    names = dotted.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {override}: write it as section.key=value")
    if names[0] not in SECTIONS:
        raise ConfigError(
            f"--set {override}: {names[0]} is not a section{did_you_mean(names[0], SECTIONS)}"
        )
    branch = tree
    for name in names[:-1]:
        if not isinstance(branch.get(name), dict):
            branch[name] = {"name": branch[name]} if isinstance(branch.get(name), str) else {}
        branch = branch[name]
    branch[names[-1]] = parse_value(text, f"--set {override}")


def _bounds(keys: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key not in ("sigma", "locked")}
