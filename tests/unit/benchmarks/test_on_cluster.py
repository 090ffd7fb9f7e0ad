"""The figures of the stack on Kubernetes, as far as they need no cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.on_cluster import mebibytes, show_gateway_image
from tests.cluster.images import PYTHON_IMAGE, image_name

BUILDAH = """#!/bin/sh
# Has the images whose folder is there, and mounts a container, which is named as its image, at that folder.
for name; do :; done
folder="{images}/$name"
case $1 in
  inspect) test -d "$folder" ;;
  from) test -d "$folder" && echo "$name" ;;
  mount) echo "$folder" ;;
esac
"""


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a folder for each image that buildah has."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "buildah"
    program.write_text(BUILDAH.format(images=tmp_path / "images"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return tmp_path / "images"


def test_the_gateways_image_is_measured_by_the_name_it_is_built_under(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in ((image_name("gateway"), 5_000_000), (PYTHON_IMAGE, 2_000_000)):
        (images / name).mkdir(parents=True)
        (images / name / "file").write_bytes(bytes(size))
    assert image_name("gateway").endswith("/gateway:0.1.0")
    show_gateway_image()
    figure = json.loads(capsys.readouterr().out)
    assert (figure["name"], figure["value"], figure["unit"]) == ("gateway_image_mb", 3.0, "MB")


def test_a_figure_that_cannot_be_had_is_left_out_with_the_reason(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_gateway_image()
    said = capsys.readouterr()
    assert said.out == ""
    assert f"gateway_image_mb is left out: buildah does not have {image_name('gateway')}" in said.err


@pytest.mark.parametrize(("text", "expected"), [("512Ki", 0.5), ("9Mi", 9.0), ("1Gi", 1024.0), ("0", 0.0)])
def test_memory_is_read_in_every_unit_that_the_api_writes(text: str, expected: float) -> None:
    assert mebibytes(text) == expected
