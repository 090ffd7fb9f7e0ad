"""The examples of the README are taken by the code that they are for."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from typer.main import get_command

from shortstack.cli.main import app
from shortstack.declarations.publication import parse_publication


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)


def test_the_messages_of_the_readme_are_publications(repository: Path) -> None:
    python = next(block for block in blocks(repository / "README.md", "python") if "KafkaProducer" in block)
    assignment = next(node for node in ast.parse(python).body if isinstance(node, ast.Assign))
    parse_publication(json.dumps(ast.literal_eval(assignment.value)).encode())

    shell = "\n".join(blocks(repository / "README.md", "sh"))
    messages = re.findall(r"echo '(\{.*?\})' \| kcat", shell)
    assert messages
    for message in messages:
        parse_publication(message.encode())


def test_the_python_of_the_readme_is_python(repository: Path) -> None:
    for block in blocks(repository / "README.md", "python"):
        compile(block, "README.md", "exec")


def test_the_commands_of_the_readme_exist(repository: Path) -> None:
    shell = "\n".join(blocks(repository / "README.md", "sh"))
    used = re.findall(r"(?m)(?:^|-- )(?:\.venv/bin/)?shortstack ([a-z]+)(?: ([a-z]+))?", shell)
    assert used
    root = get_command(app)
    for name, sub in used:
        command = root.commands[name]  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            assert sub in command.commands, f"{name} {sub}"
