"""Settings as a command line gives them: a YAML or JSON file, or key=value pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from shortstack.core.errors import Invalid, NotFound

__all__ = ["is_file_name", "mapping_in", "settings_given"]

_ENDINGS: Final = (".yaml", ".yml", ".json")


def is_file_name(text: str) -> bool:
    """Whether ``text`` names a file that `mapping_in` reads."""
    return text.endswith(_ENDINGS)


def settings_given(text: str, where: str) -> Mapping[str, Any]:
    """The settings of a file, or of ``key=value,key=value``; values are YAML. No text gives none.

    Args:
        where: the option, for errors.

    Raises:
        NotFound: there is no such file.
        Invalid: it holds no mapping, or a pair is none.
    """
    if is_file_name(text):
        return mapping_in(Path(text), where)
    settings = {}
    for pair in filter(None, text.split(",")):
        key, sign, value = pair.partition("=")
        if not sign:
            raise Invalid(f'"{pair}" is no setting', where=where, remedy="Write key=value,key=value.")
        settings[key.strip()] = _yaml(value, where)
    return settings


def mapping_in(path: Path, where: str) -> Mapping[str, Any]:
    """The mapping that a YAML or JSON file holds.

    Raises:
        NotFound: there is no such file.
        Invalid: it is no YAML, or holds no mapping.
    """
    if not path.is_file():
        raise NotFound(f"no file {path}", where=where)
    value = _yaml(path.read_bytes(), f"{where} {path}")
    if not isinstance(value, dict):
        raise Invalid(f"{path} holds no mapping", where=where)
    return value


def _yaml(text: str | bytes, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Invalid(f"it is no YAML: {' '.join(str(error).split())}", where=where) from error
