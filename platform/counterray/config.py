"""The base of every configuration: YAML in, ``--set a.b=c`` on top, errors that name the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

ConfigType = TypeVar("ConfigType", bound="Config")


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the key, its value and what is allowed."""


class Config(BaseModel):
    """Base of all configuration classes: immutable, with unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def load(
    schema: type[ConfigType], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> ConfigType:
    """Reads a YAML file, applies overrides and validates.

    Args:
        schema: The configuration class.
        path: A YAML file, or ``None`` for the schema's defaults.
        overrides: Assignments ``a.b=c``; the value is read as YAML, so ``3e-4`` and ``[1, 2]`` work.

    Raises:
        ConfigError: If the file is missing or no mapping, an override is not an assignment, a key is
            unknown (with the nearest known name), or a value is refused (with the reason).
    """
    return validate(schema, read(path, overrides))


def read(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a YAML file and applies overrides, without a schema; see `load`."""
    values = _read(Path(path)) if path is not None else {}
    for override in overrides:
        _assign(values, override)
    return values


def validate(schema: type[ConfigType], values: Mapping[str, Any]) -> ConfigType:
    """Validates plain values against a schema; see `load` for the errors."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(schema, detail) for detail in error.errors())) from None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        siblings = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"There is no config file {path}. In that folder: {', '.join(siblings) or 'none'}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; a mapping of settings is needed.")
    return values


def _assign(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r} is not of the form a.b=c.")
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key}: {parent!r} is a value, not a group of settings.")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: {text!r} is not valid YAML: {error}") from None


def _explain(schema: type[BaseModel], detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location)
    if detail["type"] != "extra_forbidden":
        return f"Setting {key or 'file'}: {detail['msg']} (got {detail.get('input')!r})."
    known = sorted(_known_names(schema, location[:-1]))
    nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"Unknown setting {key!r}.{hint} Known here: {', '.join(known) or 'nothing'}."


def _known_names(schema: type[BaseModel], path: Sequence[str]) -> set[str]:
    """Names of the fields that may stand at ``path``; union tags in a pydantic location are skipped."""
    candidates = {schema}
    for part in path:
        children = {
            child
            for model in candidates
            if part in model.model_fields
            for child in _models_in(model.model_fields[part].annotation)
        }
        candidates = children or candidates
    tagged = {model for model in candidates if path and _has_tag(model, path[-1])}
    return {name for model in tagged or candidates for name in model.model_fields}


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return any(field.default == tag for field in model.model_fields.values())


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
