"""What everything read from YAML shares: typed, frozen, complete settings, checked before anything runs.

Unknown keys are refused with the nearest known one. No code in YAML: `yaml.safe_load` only. Shipped files are found by name.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ConfigError


class Settings(BaseModel):
    """Base of everything read from YAML: frozen, unknown keys refused, a docstring under every field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


AnySettings = TypeVar("AnySettings", bound=Settings)


Shipped = Literal["configs", "configs/profiles", "data_manifests"]


def find_shipped(kind: Shipped, name_or_path: str) -> Path:
    """The file that a name or a path means. Shipped files are inside the package, or beside it in a source tree."""
    given = Path(name_or_path)
    if given.suffix in (".yaml", ".yml"):
        if given.is_file():
            return given
        raise ConfigError(
            f"{given}: no such file; give a path, or one of the shipped {kind}: {', '.join(shipped_names(kind))}"
        )
    for folder in _shipped_folders(kind):
        if (folder / f"{name_or_path}.yaml").is_file():
            return folder / f"{name_or_path}.yaml"
    names = shipped_names(kind)
    nearest = difflib.get_close_matches(name_or_path, names, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    raise ConfigError(f"{name_or_path}: expected a .yaml file or one of the shipped {kind} ({', '.join(names)}).{hint}")


def shipped_names(kind: Shipped) -> list[str]:
    """Names of the YAML files that came with radloop."""
    return sorted({path.stem for folder in _shipped_folders(kind) for path in folder.glob("*.yaml")})


def is_shipped(path: Path) -> bool:
    """Whether a file came with radloop, so that its folder is no place for anything of the user's."""
    return any(
        path.resolve().parent == folder.resolve() for kind in get_args(Shipped) for folder in _shipped_folders(kind)
    )


def _shipped_folders(kind: str) -> Iterator[Path]:
    package = Path(__file__).parent
    yield from (folder for folder in (package / kind, package.parent / kind) if folder.is_dir())


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; ConfigError with the line where it does not parse."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def parse_settings(kind: type[AnySettings], content: Mapping[str, Any], where: str) -> AnySettings:
    """`content` checked against `kind`; every problem in one ConfigError, each with its key and, if unknown, the nearest known."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = [_explain(kind, problem) for problem in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(dict.fromkeys(problems))) from None


def dump_yaml(settings: Settings) -> str:
    """Complete YAML of the settings, every default written out, keys in their documented order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def digest(settings: Settings) -> str:
    """sha256 of the settings' values, whatever their order or formatting was."""
    return hashlib.sha256(json.dumps(settings.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _explain(kind: type[Settings], problem: Any) -> str:
    location = [part for part in problem["loc"] if not (isinstance(part, str) and ("[" in part or part[:1].isupper()))]
    key = ".".join(str(part) for part in location)
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        found = f" (found {problem['input']!r})" if key and problem["type"] not in ("missing", "value_error") else ""
        return f"{key}: {message}{found}" if key else message
    known = _known_keys(kind, location[:-1])
    nearest = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"{key}: unknown key; " + (f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(known)}")


def _known_keys(kind: type[Settings], location: Sequence[str | int]) -> list[str]:
    """Keys that the settings at `location` inside `kind` may have."""
    here: list[type[Settings]] = [kind]
    for part in location:
        if isinstance(part, int):
            continue
        annotations = [model.model_fields[part].annotation for model in here if part in model.model_fields]
        here = [found for annotation in annotations for found in _settings_in(annotation)]
    return sorted({name for model in here for name in model.model_fields})


def _settings_in(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for argument in getattr(annotation, "__args__", ()) for found in _settings_in(argument)]
