"""What must be there before a stack starts, and the command that brings it."""

from __future__ import annotations

import shlex
from pathlib import Path

from shortstack.core.errors import Fatal
from shortstack.local.base_model import BASE_MODEL, inspect_base_model
from shortstack.local.services import served_model
from shortstack.local.settings import LocalSettings

__all__ = ["require_base_model", "setup_command"]


def setup_command(settings: LocalSettings) -> str:
    """The command that prepares the folder of this stack; the checkout's own folder needs no naming."""
    if settings.root == LocalSettings.default_root():
        return "make setup"
    return f"SHORTSTACK_VAR={shlex.quote(str(settings.root))} make setup"


def require_base_model(settings: LocalSettings, *, full: bool = False) -> str:
    """Says which base model the inference server will load.

    Args:
        full: also compare the content of every file of the packaged one (about a second).

    Raises:
        Fatal: it is not there, or not whole; the server would only end, again and again.
    """
    name, folder = served_model(settings)
    if settings.base_models is not None:
        if not (folder / "config.json").is_file():
            raise Fatal(
                f"there is no config.json in {folder}",
                where=f"base model {name}",
                remedy="Let SHORTSTACK_BASE_MODELS name a folder that holds a model in Hugging Face layout.",
            )
        return f"{name} at {folder}, named by SHORTSTACK_BASE_MODELS"
    faults = inspect_base_model(settings.root, full=full)
    if faults:
        raise Fatal(
            "; ".join(f"{fault.file}: {fault.what}" for fault in faults),
            where=f"base model {name}",
            remedy=_remedy(settings, folder),
        )
    return f"{BASE_MODEL}, each file with its sha256"


def _remedy(settings: LocalSettings, folder: Path) -> str:
    if not folder.exists():
        return f"Each SHORTSTACK_VAR holds its own. Make it: `{setup_command(settings)}`, in the checkout."
    return f"Remove {folder}, then make it anew: `{setup_command(settings)}`, in the checkout."
