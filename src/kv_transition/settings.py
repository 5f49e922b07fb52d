"""The configuration: the same settings whichever way they were written.

`from_mapping` is the one entry point. It expands `${VAR}`, reads text as YAML where a key is not text, canonicalises
budgets and method names, and validates; the Snakefile and the command line both go through it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kv_transition import paths
from kv_transition.errors import ConfigError
from kv_transition.files import write_text
from kv_transition.schema import Settings

__all__ = [
    "Settings",
    "config_yaml",
    "deep_merge",
    "expand_variables",
    "from_mapping",
    "load_settings",
    "parse_override",
    "read_yaml",
    "write_config",
]

VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


def expand_variables(value: Any, key: str = "") -> Any:
    """Replace `${VAR}` and `${VAR:-default}` in every text of a nested value.

    Raises
    ------
    ConfigError
        When a variable without default is not set; the message names the key and the variable.
    """
    if isinstance(value, Mapping):
        return {
            name: expand_variables(item, f"{key}.{name}" if key else str(name))
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [expand_variables(item, f"{key}.{index}") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        found = os.environ.get(match["name"]) or match["default"]
        if found is None:
            raise ConfigError(
                f"{key}: the environment variable {match['name']} is not set; set it or write "
                f"${{{match['name']}:-default}}"
            )
        return found

    return VARIABLE.sub(replace, value)


def _problem(error: ValidationError) -> str:
    """The first complaint of pydantic as one line that names the key."""
    found = error.errors()[0]
    where = ".".join(str(part) for part in found["loc"] if not str(part).startswith(("list[", "constrained")))
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        section: Any = Settings
        for part in found["loc"][:-1]:
            section = section.model_fields[str(part)].annotation
        close = difflib.get_close_matches(str(found["loc"][-1]), section.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else "known keys: " + ", ".join(section.model_fields)
        message = f"unknown key; {hint}"
    elif found["type"] == "value_error":
        first, _, rest = message.partition(": ")
        if rest and first.isidentifier():
            where, message = f"{where}.{first}" if where else first, rest
        elif not where or message.startswith(f"{where}."):
            where, _, message = message.partition(": ")
    else:
        message = f"{message[0].lower()}{message[1:]}, got {found['input']!r}"
    more = error.error_count() - 1
    return f"{where}: {message}" + (f" (and {more} more)" if more else "")


def from_mapping(merged: Mapping[str, Any]) -> Settings:
    """Make settings from a merged configuration: expand variables, read text as values, canonicalise, validate.

    Parameters
    ----------
    merged : nested mapping, as given by YAML files, by Snakemake's `config` or by a previous `resolved()`.

    Raises
    ------
    ConfigError
        One line that names the key and the remedy.
    """
    try:
        return Settings.model_validate(expand_variables(merged))
    except ValidationError as error:
        raise ConfigError(_problem(error)) from None


def deep_merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; lists and scalars of the overlay replace those of the base."""
    merged = dict(base)
    for key, value in overlay.items():
        mergeable = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = deep_merge(merged[key], value) if mergeable else value
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """Turn `kv.kernel=7` into {"kv": {"kernel": 7}}, the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise ConfigError(f"--override {text}: write section.key=value, e.g. kv.kernel=7")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{key}: {value!r} is not valid YAML") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; a `ConfigError` names the file and, where there is one, the line."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{line}: not valid YAML; quote a ${{VAR}} inside braces or brackets"
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: sections such as `kv:` are expected at the top")
    return content


def load_settings(
    config_path: str | Path, overrides: Mapping[str, Any] | Sequence[str] | None = None
) -> dict[str, Any]:
    """Merge the default configuration, a file over it and overrides over both, and resolve the result.

    Parameters
    ----------
    config_path : the experiment's YAML file; keys it does not name keep the values of config/default.yaml.
    overrides : nested mapping, or texts such as "kv.kernel=7".

    Returns
    -------
    The resolved configuration, as `Settings.resolved()` gives it.
    """
    merged: dict[str, Any] = {}
    default = paths.DEFAULT_CONFIG
    if default.is_file() and default.resolve() != Path(config_path).resolve():
        merged = read_yaml(default)
    merged = deep_merge(merged, read_yaml(config_path))
    if isinstance(overrides, Mapping):
        merged = deep_merge(merged, overrides)
    else:
        for text in overrides or ():
            merged = deep_merge(merged, parse_override(text))
    return from_mapping(merged).resolved()


def config_yaml(resolved: Mapping[str, Any]) -> str:
    """A resolved configuration as YAML text."""
    return str(yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True))


def write_config(path: str | Path, resolved: Mapping[str, Any]) -> None:
    """Write a resolved configuration as a file that Snakemake and the commands accept."""
    write_text(path, config_yaml(resolved))
