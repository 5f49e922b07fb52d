"""What every section of the configuration has in common: strict keys, and the same meaning for text and values."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _as_text(value: object) -> object:
    """Numbers are accepted where a name is expected (`--config id=5`); 2e5 is not, since its spelling is lost."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


Text = Annotated[str, BeforeValidator(_as_text)]
Name = Annotated[str, BeforeValidator(_as_text), Field(pattern=NAME)]


def _takes_text(annotation: Any) -> bool:
    """Whether a key of this type may hold text, so that text given for it is not read as YAML."""
    if annotation is str or get_origin(annotation) is Literal:
        return True
    if get_origin(annotation) in {Annotated, Union, UnionType}:
        return any(_takes_text(part) for part in get_args(annotation))
    return False


class Section(BaseModel):
    """A group of keys: unknown keys are refused, text is read as YAML where a key is not text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _read_scalars(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        read = dict(data)
        for key, field in cls.model_fields.items():
            value = read.get(key)
            if isinstance(value, str) and (not _takes_text(field.annotation) or value in {"null", "~"}):
                with suppress(yaml.YAMLError):
                    read[key] = yaml.safe_load(value)
            if isinstance(read.get(key), bool) and "bool" not in str(field.annotation):
                raise ValueError(f"{key}: a number or text is expected, not {read[key]}")
        return read
