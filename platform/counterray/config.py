"""The base of every configuration: YAML in, ``--set a.b=c`` on top, errors that name the key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

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
        values = _parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; a mapping of settings is needed.")
    return values


def _assign(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"--set {override!r} is not of the form a.b=c.")
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        if node.get(parent) is None:  # absent, or a heading with nothing below it
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key}: {parent!r} is a value, not a group of settings.")
    try:
        node[last] = _parse(text)
    except yaml.YAMLError as error:
        shown = error.problem if isinstance(error, yaml.MarkedYAMLError) else type(error).__name__
        # Not the value: it may be a secret.
        raise ConfigError(f"--set {key}: the value is not valid YAML: {shown}; put it in quotes.") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, as ``--set`` takes them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        group = isinstance(value, Mapping) and value
        flat.update(flatten(value, f"{name}.") if group else {name: value})
    return flat


def _explain(schema: type[BaseModel], detail: Any) -> str:
    *parents, last = [str(part) for part in detail["loc"]] or ["file"]
    if detail["type"] != "extra_forbidden":
        key = ".".join(_follow(schema, [*parents, last])[0])
        if isinstance(detail.get("input"), dict) or _is_secret(schema, [*parents, last]):
            # A group may hold a secret among its values.
            return f"Setting {key}: {detail['msg']}."
        return f"Setting {key}: {detail['msg']} (got {detail.get('input')!r})."
    keys, models = _follow(schema, parents)
    known = sorted({name for model in models for name in model.model_fields})
    nearest = difflib.get_close_matches(last, known, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"Unknown setting {'.'.join([*keys, last])!r}.{hint} Known here: {', '.join(known) or 'nothing'}."


def _follow(schema: type[BaseModel], location: Sequence[str]) -> tuple[list[str], set[type[BaseModel]]]:
    """Walks along a pydantic location.

    Returns:
        The keys as the user wrote them, thus without the tags of unions that pydantic puts in between, and
        the models whose fields may stand below the last.
    """
    keys: list[str] = []
    models = {schema}
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        tagged = {model for model in models if _has_tag(model, part)}
        if fields:
            models = {child for field in fields for child in _models_in(field.annotation)}
        elif tagged:
            models = tagged
            continue
        keys.append(part)
    return keys, models


def _is_secret(schema: type[BaseModel], location: Sequence[str]) -> bool:
    """Whether the setting at a pydantic location is of a secret type."""
    _, models = _follow(schema, location[:-1])
    fields = (model.model_fields.get(location[-1]) for model in models)
    return any(field is not None and field.annotation is SecretStr for field in fields)


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    """Whether a field of the model has ``tag`` as one of its literal values."""
    annotations = (field.annotation for field in model.model_fields.values())
    return any(
        get_origin(annotation) is Literal and tag in get_args(annotation) for annotation in annotations
    )


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


class _Loader(yaml.SafeLoader):
    """Plain values only, numbers as YAML 1.2 has them, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, takes 3e-4 for text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+"), list("-+.0123456789")
)


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)
