"""The command line -> Hydra's config -> the dataclass of its stage; the choices of all directories of configs."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path, PurePosixPath
from traceback import walk_tb
from typing import Any, TypeVar

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal import utils as hydra_utils
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from llm.config.data import DataConfig, DataSource, PartConfig
from llm.config.overrides import as_value, explain, no_choice, readable
from llm.config.stages import STAGES
from llm.errors import ConfigError

Config = TypeVar("Config")

CONF = Path(__file__).parents[2] / "conf"
MAX_ALIASES = 20  # of a YAML file: Hydra writes each out, so that nine lines of nine are 387 million values
NAMED = ("tokenizer", "data", "model")  # groups whose choices are called what their files are


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's reader of YAML files, with a bound on aliases, and the name of a choice from that of its file."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        if path.is_file() and "*" in (text := path.read_text(encoding="utf-8")):
            aliases = [token for token in yaml.scan(text) if isinstance(token, yaml.AliasToken)]
            if len(aliases) > MAX_ALIASES:
                raise ConfigError(f"{path}: it has more than {MAX_ALIASES} aliases. Write out what is meant.")
        found, choice = super().load_config(config_path), PurePosixPath(config_path)
        if str(choice.parent) in NAMED and isinstance(found.config, DictConfig):
            found.config = OmegaConf.merge({"name": choice.stem}, found.config)
        return found


SourcesRegistry.instance().types["file"] = FileConfigSource


def from_hydra(cfg: DictConfig) -> Any:
    """The composed config as the dataclass of its stage, with every key, type and range checked.

    Raises:
        ConfigError: a key that the schema does not have, a value that is missing, or values that cannot go together.
    """
    schema = OmegaConf.get_type(cfg)
    if schema not in STAGES.values():
        raise ConfigError(f"no stage is chosen. Set stage to one of {', '.join(STAGES)}.")
    with _explained():
        refuse_computed(cfg, list(map(str, HydraConfig.get().overrides.task)) if HydraConfig.initialized() else [])
        composed = OmegaConf.to_container(cfg)  # again into the schema: Hydra lets `+key=value` add any key
        return OmegaConf.to_object(_with_parts(OmegaConf.merge(OmegaConf.structured(schema), composed)))


def as_recorded(schema: type[Config], values: dict[str, Any], *, place: str) -> Config:
    """The dataclass of a config that a run recorded in its config.yaml, checked as one that is typed; `place` names it.

    Raises:
        ConfigError: this version of the schema does not have it, or a credential of it is not in the environment.
    """
    try:
        return _made(schema, values)
    except InterpolationResolutionError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{place}: {reason}. Set it, as it was when that run was made.") from error
    except (OmegaConfBaseException, ConfigError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{place}: recorded by another version ({reason}). Make that run again.") from error


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """What overrides make of conf/, as nested dicts; what must be set and is not is missing as `???`.

    Raises:
        ConfigError: they cannot be composed.
    """
    with composing():
        config = compose("config", overrides=list(map(readable, overrides)))
        config.name = None  # it may hold ${hydra:job.num}
        return dict(OmegaConf.to_container(config, resolve=True, enum_to_str=True))  # type: ignore[arg-type]  # a dict


def data_config(overrides: Sequence[str]) -> DataConfig:
    """What data=<choice> and data.<key>=<value> come to by themselves.

    Raises:
        ConfigError: they cannot be composed.
    """
    with _explained():
        return _made(DataConfig, composed(overrides)["data"])


def data_choices() -> list[str]:
    """The names of all choices of data."""
    with composing():
        loader = GlobalHydra.instance().config_loader()
        return list(loader.get_group_options("data", config_name="config", overrides=searchpath()))


def data_settings(choices: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the YAML file of each choice says, and those that it is built on; nothing of the schema.

    Raises:
        ConfigError: one cannot be read.
    """
    with composing():
        config = compose("config", ["~stage", *(f"+data@{each}={each}" for each in choices), *searchpath()])
        return {each: dict(OmegaConf.to_container(config[each])) for each in choices}  # type: ignore[arg-type]


def data_presets() -> dict[str, DataConfig]:
    """Every choice of data that reads files of the user's, by its name, with an empty path."""
    settings = data_settings(data_choices())
    return {name: preset(each) for name, each in settings.items() if not {"source", "path"} & each.keys()}


def preset(settings: dict[str, Any], *, path: str = "") -> DataConfig:
    """The config of what the YAML file of a choice says.

    Raises:
        ConfigError: the schema does not have it.
    """
    with _explained():
        return _made(DataConfig, {**settings, "path": path})


def searchpath() -> list[str]:
    """The override by which another command has Hydra look where the one that runs here has it look."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    typed = [
        f"{each.schema}://{each.path}" for each in sources if re.match(r"hydra\.searchpath|command-line", each.provider)
    ]
    return [f"hydra.searchpath=[{','.join(map(as_value, typed))}]"] if typed else []


@contextmanager
def composing() -> Iterator[None]:
    """Let Hydra compose, the one that is at it here or else one over conf/.

    Raises:
        ConfigError: something cannot be composed.
    """
    with _explained():
        if GlobalHydra.instance().is_initialized():
            yield
        else:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                yield


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error


def _made(schema: type[Config], values: Any) -> Config:
    made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    assert isinstance(made, schema)
    return made


def refuse_computed(cfg: DictConfig, overrides: list[str]) -> None:
    """Refuse an override of a setting that is computed from another one, which was typed too or comes from a YAML.

    Raises:
        ConfigError: there is one, and it would have been left unused.
    """
    for key, _, value in (override.lstrip("+").partition("=") for override in overrides):
        group, _, name = key.rpartition(".")
        chosen = OmegaConf.select(cfg, group) if group else None
        schema: Any = OmegaConf.get_type(chosen) if OmegaConf.is_config(chosen) else None
        known = {f.name: f for f in fields(schema)} if is_dataclass(schema) else {}
        for source in known[name].metadata.get("computed_from", ()) if name in known else ():
            if (other := OmegaConf.select(cfg, f"{group}.{source}")) is not None:
                raise ConfigError(
                    f"{key}={value} is not used: it is computed from {group}.{source}={other}. Set {group}.{source}="
                    f"null, or leave {key} out."
                )


# The parts of a mixture

# not of a part
_OF_MIXTURE = ("name", "sequence_length", "sequence_bytes", "batch_size", "packing", "num_workers", "held_out_share")


def _with_parts(cfg: Any) -> Any:
    """The config with each part merged over its choice of conf/data.

    What a part has comes from, the later the stronger: the schema, data.cleaning and data.bad_records of the mixture,
    the YAML file of its choice, and the part's own keys.
    """
    data = cfg.get("data")
    if data is None or OmegaConf.is_missing(data, "source") or not data.parts:
        return cfg
    if data.source is not DataSource.mixture:
        raise ConfigError(f"data.parts is for data=mixture, not for {data.name}. Choose data=mixture, or leave it out.")
    if not isinstance(data.parts, DictConfig):
        raise ConfigError("data.parts is no set of parts. Write data.parts={<name>: {use: <a choice of conf/data>}}.")
    data.parts = {str(name): _part(str(name), part, data) for name, part in sorted(data.parts.items())}
    return cfg


def _part(name: str, typed: Any, mixture: DictConfig) -> PartConfig:
    key = f"data.parts.{name}"
    if not re.fullmatch(r"\w[\w-]{0,31}", name):  # it names metrics
        raise ConfigError(f"{key}: {name!r} cannot name a part. Use letters, digits, '_' and '-', 32 in all.")
    if not isinstance(typed, DictConfig) or "use" not in typed:
        raise ConfigError(f"{key}.use is missing. Set it to a choice of conf/data: {', '.join(data_choices())}.")
    if typed.use not in (known := data_choices()):
        raise ConfigError(no_choice(f"{key}.use", str(typed.use), known))
    settings = data_settings([typed.use])[typed.use]
    share = settings.get("held_out_share", mixture.held_out_share)
    if settings.get("kind") == "text" and share != mixture.held_out_share:
        raise ConfigError(
            f"{key}.use={typed.use} holds out {share} of the documents, the mixture {mixture.held_out_share}: texts "
            f"would be on both sides of the split. Set data.held_out_share={share}."
        )
    inherited = {"cleaning": mixture.cleaning, "bad_records": mixture.bad_records}
    places = OmegaConf.create({"data": {"parts": {name: OmegaConf.structured(PartConfig)}}})  # for errors to name
    for each in (inherited, {k: v for k, v in settings.items() if k not in _OF_MIXTURE}, typed):
        OmegaConf.update(places, key, each)
    part = OmegaConf.to_object(OmegaConf.select(places, key))
    assert isinstance(part, PartConfig)
    return part


# The command line


@dataclass(frozen=True)
class Job:
    """One run that is asked for."""

    config: Any  # of the schema of its stage
    overrides: list[str]  # by which another process composes the same config
    is_alone: bool  # whether it is all that this process is to do: no job of a multirun


def run_command(run: Callable[[Job], float | None]) -> None:
    """Do what the command line says: run one job, sweep several, or show help, a config or completions.

    Raises:
        ConfigError: Hydra cannot compose what is asked for.
        Exception: what `run` raised of a job by itself; of a multirun's the sweeper's report.
    """
    raised: list[Exception] = []

    def task(cfg: DictConfig) -> float | None:
        is_alone = HydraConfig.get().mode is RunMode.RUN
        try:
            config = from_hydra(cfg)
            return run(Job(config, [*map(str, HydraConfig.get().overrides.task), *searchpath()], is_alone))
        except Exception as error:
            if not is_alone:
                raise
            raised.append(error)  # Hydra would add lines of its own
            return None

    words = sorted(
        sys.argv[1:], key=lambda word: word not in ("-m", "--multirun")
    )  # argparse takes none between others
    sys.argv[1:] = map(readable, words)
    hydra_utils.run_and_report = lambda func: func()  # as it is, it prints what is raised and exits with 1
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, RuntimeError) as error:
        if not _is_of_hydra(error):
            raise
        raise ConfigError(explain(error)) from error
    if raised:
        raise raised[0]


def _is_of_hydra(error: BaseException) -> bool:
    """Whether Hydra or what it reads YAML with raised it; a ValueError of our own is a bug, or says itself what is."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).split(".")[0] in ("hydra", "omegaconf", "yaml")
