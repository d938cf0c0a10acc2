"""Writes requirements.txt and requirements-extras.txt, which hold what pyproject.toml declares."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# File -> the extras of pyproject.toml in it; None stands for the dependencies that everybody needs.
FILES: dict[str, tuple[str | None, ...]] = {
    "requirements.txt": (None, "dev"),
    "requirements-extras.txt": ("hf", "tables", "demo", "serve", "export", "e2e", "docs"),
}
HEADER = "# Written by run_scripts/write_requirements.py: change pyproject.toml and run it again.\n"


def contents(pyproject: str) -> dict[str, str]:
    """Name of each requirements file -> its text, for the text of a pyproject.toml."""
    project: dict[str, Any] = tomllib.loads(pyproject)["project"]
    groups: dict[str | None, list[str]] = {None: project["dependencies"], **project["optional-dependencies"]}
    return {name: HEADER + "".join(f"{line}\n" for key in keys for line in groups[key]) for name, keys in FILES.items()}


def main() -> None:
    """Writes the files."""
    for name, text in contents((ROOT / "pyproject.toml").read_bytes().decode()).items():
        (ROOT / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
