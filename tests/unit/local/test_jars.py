from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from shortstack.core.errors import Fatal, Transient
from shortstack.local.jars import Jar, broken_jars, declared_jars, ensure_jars


def jar(name: str, content: bytes) -> Jar:
    return Jar("org.example", name, "1.0", hashlib.sha256(content).hexdigest())


class Repository:
    """Gives each jar the content of its name, and fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.asked: list[str] = []

    def __call__(self, wanted: Jar, scratch: Path) -> Path:
        self.asked.append(wanted.artifact)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("connection reset")
        file = scratch / wanted.file_name
        file.write_bytes(wanted.artifact.encode())
        return file


def test_the_declared_jars_are_those_of_one_broker() -> None:
    jars = declared_jars()
    assert len(jars) == 44
    assert len({jar.file_name for jar in jars}) == 44
    assert any(jar.artifact == "kafka_2.13" for jar in jars)


def test_jars_are_fetched_once(tmp_path: Path) -> None:
    jars = [jar("alpha", b"alpha"), jar("beta", b"beta")]
    repository = Repository()
    assert ensure_jars(tmp_path / "libs", jars, fetch=repository) == 2
    assert ensure_jars(tmp_path / "libs", jars, fetch=repository) == 0
    assert sorted(repository.asked) == ["alpha", "beta"]
    assert sorted(file.name for file in (tmp_path / "libs").iterdir()) == ["alpha-1.0.jar", "beta-1.0.jar"]


def test_a_jar_with_other_content_is_refused_by_name_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"jar alpha-1\.0\.jar: .*sha256"):
        ensure_jars(tmp_path, [jar("alpha", b"what was declared")], fetch=Repository())
    assert not list(tmp_path.iterdir())


def test_a_jar_that_was_damaged_later_is_fetched_again(tmp_path: Path) -> None:
    wanted = [jar("alpha", b"alpha")]
    ensure_jars(tmp_path, wanted, fetch=Repository())
    (tmp_path / "alpha-1.0.jar").write_bytes(b"alp")
    assert broken_jars(tmp_path, wanted) == wanted
    assert ensure_jars(tmp_path, wanted, fetch=Repository()) == 1
    assert (tmp_path / "alpha-1.0.jar").read_bytes() == b"alpha"


def test_a_repository_that_fails_twice_is_asked_a_third_time(tmp_path: Path) -> None:
    assert ensure_jars(tmp_path, [jar("alpha", b"alpha")], fetch=Repository(failures=2)) == 1


def test_a_repository_that_goes_on_failing_is_a_transient_error_with_the_way_round(tmp_path: Path) -> None:
    with pytest.raises(Transient, match=r"alpha.*connection reset") as caught:
        ensure_jars(tmp_path, [jar("alpha", b"alpha")], fetch=Repository(failures=3))
    assert "SHORTSTACK_MAVEN_URL" in caught.value.remedy


def test_a_line_that_is_no_coordinate_is_named_by_number(tmp_path: Path) -> None:
    listing = tmp_path / "jars.txt"
    listing.write_text("# comment\norg.example:alpha:1.0 " + "0" * 64 + "\norg.example:beta\n")
    with pytest.raises(Fatal, match="line 3"):
        declared_jars(listing)
