"""docs/install.md and docs/operate.md name what there is: values, files, images, commands, settings, panels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import images
import pytest
import typer
import yaml
from tests.unit.chart.rendering import pod, render

from shortstack.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "shortstack"
TEXTS = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("install", "operate")}
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
BOTH = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
SPAN = re.compile(r"`([^`\n]+)`")


def there(path: str) -> bool:
    """Whether a dotted path leads to a value, or to a part of them."""
    found: Any = VALUES
    for part in path.split("."):
        if not isinstance(found, dict) or part not in found:
            return False
        found = found[part]
    return True


@BOTH
def test_every_value_is_one_of_the_charts(text: str) -> None:
    named = {
        path
        for span in SPAN.findall(text)
        for path in re.findall(r"^([a-z]\w*(?:\.\w+)+)(?::.*)?$", span)
        if path.split(".")[0] in VALUES
    }
    assert len(named) > 5
    assert [path for path in sorted(named) if not there(path)] == []


def test_values_given_on_a_command_line_or_as_yaml_are_the_charts() -> None:
    set_there = [
        pair.split("=")[0] for given in re.findall(r"--set (\S+)", TEXTS["install"]) for pair in given.split(",")
    ]
    assert set_there
    assert [path for path in set_there if not there(path)] == []
    blocks = re.findall(r"```yaml\n(.*?)```", TEXTS["install"], re.DOTALL)
    assert blocks
    for block in blocks:
        assert set(yaml.safe_load(block)) <= set(VALUES)


def test_images_that_are_loaded_are_all_that_a_cluster_without_gpus_runs() -> None:
    runnable = set(images.IMAGES) - {"build", "base", "torch", "tgi"}
    loops = re.findall(r"for image in ([^;]+);", TEXTS["install"])
    assert len(loops) == 2
    for loop in loops:
        assert set(loop.split()) == runnable


def test_a_kubeconfig_is_the_users_own_and_nobody_elses_to_read() -> None:
    (exported,) = re.findall(r"export KUBECONFIG=(\S+)", TEXTS["install"])
    assert exported.startswith("$HOME/")
    assert re.search(r'\(umask 077 && .* > "\$KUBECONFIG"\)', TEXTS["install"])


@BOTH
def test_values_files_are_there(text: str) -> None:
    assert [
        path for path in re.findall(r"helm/shortstack/values/[\w-]+\.yaml", text) if not (ROOT / path).exists()
    ] == []


@BOTH
def test_every_command_is_one_of_ours(text: str) -> None:
    root = typer.main.get_command(app)
    named = set(re.findall(r"(?:-- |`|^)shortstack ([a-z]+)(?: ([a-z]+))?", text, re.MULTILINE))
    assert named
    for first, second in named:
        command = getattr(root, "commands", {}).get(first)
        assert command is not None, f"shortstack {first}"
        inside = getattr(command, "commands", None)
        assert inside is None or second in inside, f"shortstack {first} {second}"


@BOTH
def test_objects_and_components_are_the_charts(text: str) -> None:
    folders = {folder.name for folder in (CHART / "templates").iterdir() if folder.is_dir()}
    components = folders | {"server", "trainer", "test"}
    named = set(re.findall(r"component=([\w-]+)", text)) | set(re.findall(r"(?:deploy|svc)/shortstack-([\w-]+)", text))
    assert named
    assert named <= components


def test_settings_are_documented_ones() -> None:
    settings = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    named = set(re.findall(r"SHORTSTACK_[A-Z_]+", TEXTS["operate"]))
    assert named
    assert [name for name in sorted(named) if f"`{name}`" not in settings] == []


def test_panels_that_symptoms_point_at_are_on_the_dashboard() -> None:
    board = json.loads((CHART / "files" / "overview.json").read_text(encoding="utf-8"))
    titles = {panel["title"] for panel in board["panels"]}
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", TEXTS["operate"]))
    assert len(named) > 20
    assert named <= titles


@pytest.fixture(scope="module")
def mover() -> dict[str, Any]:
    """The pod of the Job that moves the objects."""
    blocks = re.findall(r"^ *```yaml\n(.*?)^ *```", TEXTS["operate"], re.DOTALL | re.MULTILINE)
    (job,) = [found for found in map(yaml.safe_load, map(textwrap.dedent, blocks)) if found["kind"] == "Job"]
    spec: dict[str, Any] = job["spec"]["template"]["spec"]
    return spec


def test_the_job_that_moves_the_objects_may_run_wherever_the_release_may(mover: dict[str, Any]) -> None:
    toolbox = pod(render(), "cli")
    assert mover["securityContext"] == toolbox.spec["securityContext"]
    assert mover["automountServiceAccountToken"] is False
    (container,) = mover["containers"]
    assert container["securityContext"] == toolbox.containers[0]["securityContext"]


def test_the_move_of_the_objects_copies_all_and_touches_the_new_place_itself_not(
    mover: dict[str, Any], tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for file in ("datasets/a/b.bin", ".hidden/c", "lost+found/root's", "d"):
        (old / file).parent.mkdir(parents=True, exist_ok=True)
        (old / file).write_text(file)
    (old / "d").chmod(0o440)
    new.mkdir()
    for file in (old / "d", old):
        os.utime(file, (1e9, 1e9))
    (container,) = mover["containers"]
    command = [part.replace("/old", str(old)).replace("/new", str(new)) for part in container["command"]]
    for _ in range(2):  # a pod that died of it is begun again
        subprocess.run(command, check=True, timeout=30)
    found = {str(path.relative_to(new)): path.read_text() for path in new.rglob("*") if path.is_file()}
    assert found == {name: name for name in ("datasets/a/b.bin", ".hidden/c", "d")}
    assert ((new / "d").stat().st_mode & 0o777, (new / "d").stat().st_mtime) == (0o440, 1e9)
    assert new.stat().st_mtime != 1e9
