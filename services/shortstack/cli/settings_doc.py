"""Writes the page of settings from the code: ``python -m shortstack.cli.settings_doc > docs/settings.md``."""

from __future__ import annotations

import importlib
import re
import sys
from typing import Final

from pydantic.fields import FieldInfo

from shortstack.core.config import ServiceConfig, settings_table
from shortstack.local.settings import LocalSettings

__all__ = ["settings_document"]

_SERVICES: Final = {
    "ingestion": "IngestionConfig",
    "formatting": "FormattingConfig",
    "assembly": "AssemblyConfig",
    "training": "TrainingConfig",
    "serving": "ServingConfig",
    "gateway": "GatewayConfig",
}
_HEAD: Final = """# Settings

Every setting is an environment variable. A service reads the environment first, then `shortstack.toml` in the folder
that it is started in (`kafka_bootstrap = "…"`: the names in small letters, without the prefix), then its default. On
one machine `shortstack up` passes its own environment on to every service. This page is written from the code:

    python -m shortstack.cli.settings_doc > docs/settings.md
"""
_INFERENCE: Final = """The embedded model server takes TGI's names, so that one environment starts either. It reads the
environment alone."""
_STORE: Final = """Read by every service whose `SHORTSTACK_STORAGE_URL` begins with `s3://`. It needs a server that
refuses a put with `If-None-Match` where the key is taken. `gs://BUCKET/PREFIX` takes Google's variables
(`GOOGLE_APPLICATION_CREDENTIALS`, `GOOGLE_SERVICE_ACCOUNT`), `az://CONTAINER/PREFIX` Azure's
(`AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY`); files of profiles (`~/.aws`) are not read."""

Rows = list[tuple[str, str, str]]

_STORE_ROWS: Final[Rows] = [
    ("AWS_ACCESS_KEY_ID", "None", "Key; without one a web identity, a container's or the machine's role is asked"),
    ("AWS_SECRET_ACCESS_KEY", "None", "Its secret"),
    ("AWS_SESSION_TOKEN", "None", "Token of a key that expires"),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "None", "Token of a service account, with AWS_ROLE_ARN (set by Amazon's clusters)"),
    ("AWS_REGION", "us-east-1", "The bucket's region"),
    ("AWS_ENDPOINT_URL", "None", "Another server than Amazon's; the bucket stands in the path"),
    ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "false", "Whether the bucket stands in the host name instead"),
    ("AWS_CA_BUNDLE", "None", "PEM file of the authority that signed the server's certificate, where it is your own"),
]


def settings_document() -> str:
    """The whole page."""
    shared = settings_table(ServiceConfig)
    parts = [
        _HEAD,
        _section(
            "One machine", "Read by `shortstack` and its supervisor.", _rows(LocalSettings.model_fields, "SHORTSTACK_")
        ),
        _section("Every service", "", shared),
        _section("Object store", _STORE, _STORE_ROWS),
        *(_section(name, "", [row for row in _of(name) if row not in shared]) for name in _SERVICES),
        _section("inference", _INFERENCE, _rows(_inference(), "")),
    ]
    return "\n".join(parts)


def _of(service: str) -> Rows:
    # By name: the command line knows the services' contracts alone.
    config = getattr(importlib.import_module(f"shortstack.{service}.config"), _SERVICES[service])
    return settings_table(config)


def _inference() -> dict[str, FieldInfo]:
    fields: dict[str, FieldInfo] = importlib.import_module("shortstack.inference.config").InferenceConfig.model_fields
    return fields


def _rows(fields: dict[str, FieldInfo], prefix: str) -> Rows:
    rows = []
    for name, field in fields.items():
        default = "required" if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
        rows.append((f"{prefix}{name.upper()}", str(default), field.description or ""))
    return rows


def _section(title: str, words: str, rows: Rows) -> str:
    lines = [f"| `{name}` | {_default(default)} | {meaning.rstrip('.')} |" for name, default, meaning in rows]
    head = [f"## {title}", "", *([words, ""] if words else []), "| variable | default | meaning |", "|---|---|---|"]
    return "\n".join([*head, *lines, ""])


def _default(default: str) -> str:
    default = re.sub(r"PosixPath\(('[^']*')\)", r"\1", default)
    return {"None": "unset", "required": "required", "": "empty", "{}": "empty"}.get(default, f"`{default}`")


if __name__ == "__main__":
    sys.stdout.write(settings_document())
