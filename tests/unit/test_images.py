"""The images: one for every service, none as root, none from a named registry; and what `make images` builds when."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import images
import pytest
from environment import SetupError

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SERVICES = sorted(file.parent.name for file in ROOT.glob("services/shortstack/*/main.py"))


@pytest.fixture(scope="module")
def lists() -> ModuleType:
    """docker/build/lists.py, which runs inside a build."""
    return of_a_build("lists")


@pytest.fixture(scope="module")
def install() -> ModuleType:
    """docker/build/install.py, which runs inside a build."""
    return of_a_build("install")


def of_a_build(name: str) -> ModuleType:
    spec = spec_from_file_location(f"docker_build_{name}", ROOT / "docker" / "build" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def instructions(file: Path, name: str) -> list[str]:
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split(maxsplit=1)[1].strip() for line in text.splitlines() if line.startswith(f"{name} ")]


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_an_image_that_starts_it(service: str) -> None:
    [entry] = instructions(ROOT / "docker" / f"{service}.Dockerfile", "ENTRYPOINT")
    assert entry in {f'["python", "-m", "shortstack.{service}.main"]', '["shortstack"]'}


def test_make_images_knows_every_dockerfile_and_no_other() -> None:
    assert set(images.IMAGES) == {file.name.removesuffix(".Dockerfile") for file in DOCKERFILES}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_every_image_runs_as_a_numeric_user_other_than_root(file: Path) -> None:
    uid, _, gid = instructions(file, "USER")[-1].partition(":")
    assert int(uid) > 0
    assert int(gid) > 0


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_no_image_names_a_registry(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    bases = [line.split()[0] for line in instructions(file, "FROM")]
    defaults = re.findall(r"^ARG \w+_IMAGE=(\S+)", text, re.MULTILINE)
    # The first part of an image's name is a registry if it has a dot or a port, or is this machine.
    hosts = [name.split("/")[0] for name in [*bases, *defaults] if "/" in name]
    assert [host for host in hosts if "." in host or ":" in host or host == "localhost"] == []
    assert "://" not in text


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_every_image_says_what_it_is(file: Path) -> None:
    labels = instructions(file, "LABEL")[-1]
    assert "org.opencontainers.image.title=" in labels
    assert "org.opencontainers.image.description=" in labels


def test_every_list_that_is_installed_is_written_from_extras_that_exist(lists: ModuleType) -> None:
    installed = {name for file in DOCKERFILES for name in re.findall(r"install\.py ([\w-]+)", file.read_text())}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert installed == set(lists.SOURCES)
    for name, source in lists.SOURCES.items():
        assert not source.extras or [extra for extra in source.extras if extra in extras], name


def test_the_last_stage_of_the_base_has_no_pip_and_none_of_its_kind(install: ModuleType, tmp_path: Path) -> None:
    """Seen in a pod by: python3 -c 'import pip', with /usr/local/bin/python3."""
    stages = (ROOT / "docker" / "base.Dockerfile").read_text().split("\nFROM ")
    assert "python /build/install.py base --base\n" in stages[-1]
    packages, commands = tmp_path / "site-packages", tmp_path / "bin"
    for path in ("pip/__init__.py", "pip-24.0.dist-info/METADATA", "setuptools-79.0.1.dist-info/METADATA",
                 "setuptools/__init__.py", "pkg_resources/__init__.py", "_distutils_hack/__init__.py",
                 "wheel/__init__.py", "wheel-0.45.1.dist-info/METADATA", "pipeline/__init__.py"):  # fmt: skip
        (packages / path).parent.mkdir(parents=True, exist_ok=True)
        (packages / path).touch()
    (packages / "distutils-precedence.pth").touch()
    commands.mkdir()
    for name in ("pip", "pip3", "pip3.11", "wheel", "python3", "pipe"):
        (commands / name).touch()
    install.remove_build_tools([packages, tmp_path / "absent"])
    install.remove_commands([commands])
    assert [path.name for path in packages.iterdir()] == ["pipeline"]
    assert sorted(path.name for path in commands.iterdir()) == ["pipe", "python3"]


def test_a_build_sees_the_package_and_nothing_that_changes_by_itself() -> None:
    seen = [file.relative_to(ROOT) for file in images.context_files(ROOT)]

    assert Path("services/shortstack/gateway/main.py") in seen
    assert Path("deploy/kafka/broker-jars.txt") in seen
    assert [file for file in seen if file.suffix == ".pyc" or file.parts[0] in {".venv", "var", ".git", "tests"}] == []


class FakeEngine:
    """Remembers what it was asked to build."""

    def __init__(self) -> None:
        self.built: list[str] = []
        self.labels: dict[str, Mapping[str, str]] = {}

    def build(self, plan: images.Plan, name: str, labels: Mapping[str, str]) -> None:
        self.built.append(name)
        self.labels[plan.image(name)] = labels

    def label(self, image: str, label: str) -> str | None:
        return self.labels.get(image, {}).get(label)

    def sizes(self, image: str, below: str | None) -> tuple[int, int | None]:
        return 0, None


def plan(*names: str, **options: Any) -> images.Plan:
    return images.Plan(names, "shortstack", "1.0", **options)


def test_what_an_image_stands_on_is_built_before_it_and_nothing_else() -> None:
    engine = FakeEngine()
    images.build_images(plan("inference", "gateway"), engine)
    assert engine.built == ["build", "base", "torch", "gateway", "inference"]


def test_an_image_given_by_argument_is_not_built() -> None:
    engine = FakeEngine()
    images.build_images(plan("gateway", arguments={"BASE_IMAGE": "team/base:2"}), engine)
    assert engine.built == ["build", "gateway"]


def test_unchanged_images_are_left_alone_when_asked(tmp_path: Path) -> None:
    engine = FakeEngine()
    images.build_images(plan("gateway", only_changed=True), engine)
    engine.built.clear()

    assert images.build_images(plan("gateway", only_changed=True), engine) == []

    other = tmp_path / "Dockerfile"
    other.write_text(plan().dockerfile("base").read_text() + "# another\n")
    images.build_images(plan("gateway", only_changed=True, files={"base": other}), engine)
    assert engine.built == ["build", "base", "gateway"]


def test_each_dockerfile_gets_the_arguments_that_it_declares() -> None:
    given = plan(arguments={"TORCH_BACKEND": "cpu", "PYTHON_IMAGE": "team/python:3.11"})
    assert given.arguments_of("torch")["TORCH_BACKEND"] == "cpu"
    assert given.arguments_of("torch")["BASE_IMAGE"] == "shortstack/base:1.0"
    assert "TORCH_BACKEND" not in given.arguments_of("gateway")
    assert given.arguments_of("base")["PYTHON_IMAGE"] == "team/python:3.11"


def test_the_index_that_pip_is_told_of_is_uvs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    assert plan().arguments_of("build")["UV_DEFAULT_INDEX"] == "http://index.invalid/simple"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only=gatway"], "did you mean gateway?"),
        (["--build-arg=TORCH_BACKENDS=cpu"], "did you mean TORCH_BACKEND?"),
        (["--build-arg=TORCH_BACKEND"], "write NAME=VALUE"),
        (["--file=torsh=x"], "did you mean torch?"),
        (["--only=tgi"], "--build-arg TGI_IMAGE=REGISTRY/NAME:TAG"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_meant(arguments: list[str], said: str) -> None:
    with pytest.raises(SetupError, match=re.escape(said)):
        images.plan_of(arguments)


@pytest.mark.parametrize(("arguments", "built"), [([], False), (["--build-arg=TGI_IMAGE=team/tgi:3.3.7"], True)])
def test_tgi_is_built_where_its_image_is_given(arguments: list[str], built: bool) -> None:
    assert ("tgi" in images.plan_of(arguments)[0].names) is built


def test_what_tgi_stands_on_has_no_default_that_leads_nowhere() -> None:
    file = ROOT / "docker" / "tgi.Dockerfile"
    assert re.findall(r"^ARG (\S+)$", file.read_text(), re.MULTILINE) == ["TGI_IMAGE"]
    assert instructions(file, "FROM") == ["${TGI_IMAGE}"]
    assert 'org.opencontainers.image.licenses="Apache-2.0"' in instructions(file, "LABEL")[-1]


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(("docker_info", "chosen"), [("exit 0", images.Docker), ("exit 1", images.Buildah)])
def test_docker_is_taken_where_its_engine_runs_else_buildah(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker_info: str, chosen: type
) -> None:
    command(tmp_path, "docker", docker_info)
    command(tmp_path, "buildah", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(images.choose_engine(), chosen)


def test_without_an_engine_it_says_which_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="apt install buildah"):
        images.choose_engine()


def test_a_build_that_fails_names_its_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "buildah", "exit 125")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SetupError, match="the image build could not be built"):
        images.build_images(plan("gateway"), images.Buildah())


def test_docker_is_not_asked_for_what_it_cannot_do() -> None:
    with pytest.raises(SetupError, match="--engine buildah"):
        images.Docker().build(plan("gateway", volumes=["/a:/a"]), "gateway", {})


def test_no_image_that_runs_remembers_the_index() -> None:
    """Its URL may hold a password, and an image's history shows the arguments of its steps."""
    told = [file.name for file in DOCKERFILES if "INDEX" in file.read_text()]
    assert told == ["build.Dockerfile"]


def test_the_image_that_keeps_the_index_is_said_to_be_never_pushed() -> None:
    """uv.toml lies in /build, with the index and its password; the others see it only while they are made."""
    keep = [
        file.name.removesuffix(".Dockerfile")
        for file in DOCKERFILES
        if any(re.search(r"--from=\S+ /build(/\S*)? ", copied) for copied in instructions(file, "COPY"))
    ]
    assert keep == ["build"]
    for text in ("docker/README.md", "docs/install.md"):
        assert "never push `build`" in (ROOT / text).read_text().lower(), text


def test_what_others_stand_on_has_no_label_that_changes_without_it() -> None:
    """A new label makes a new image, and all that stands on it would fetch its packages anew."""
    engine = FakeEngine()
    images.build_images(plan("training"), engine)
    assert [image for image, labels in engine.labels.items() if labels] == ["shortstack/training:1.0"]
