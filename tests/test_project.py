"""What an open project has beside its code: license, notice, citation, hooks, workflow, and one version everywhere."""

import hashlib
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_license_is_the_whole_apache_licence():
    assert PROJECT["license"] == "Apache-2.0"
    words = " ".join(text("LICENSE").split())  # however its lines are broken
    assert words.startswith("Apache License Version 2.0, January 2004")
    assert (
        hashlib.sha256(words.encode()).hexdigest() == "0ffddef9e48f8a09aed5caf2d44f7ba1c1be2d9b8e0a6f693b1635b2d5566645"
    )


def test_notice_names_files_that_exist():
    paths = re.findall(r"\b(?:[\w-]+/)+[\w.*-]+", text("NOTICE"))
    assert len(paths) >= 6 and not [path for path in paths if not list(ROOT.glob(path.rstrip(".")))]
    for path in ("utils/BPE/encoder.json", "utils/BPE/vocab.bpe", "utils/BPE/dict.txt", "tests/golden"):
        assert path in paths


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load(text("CITATION.cff"))
    newest = re.findall(r"^## (\d\S*) \((\d{4}-\d\d-\d\d)\)$", text("CHANGELOG.md"), re.M)[0]
    assert (citation["version"], str(citation["date-released"])) == newest
    assert PROJECT["version"] == newest[0] and citation["license"] == PROJECT["license"]
    assert citation["preferred-citation"]["title"].startswith("OFA: Unifying Architectures, Tasks, and Modalities")


def test_hooks_run_from_the_environment_of_the_checks():
    repos = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    entries = {hook["id"]: hook["entry"] for hook in repos[0]["hooks"]}
    assert entries.keys() == {"ruff", "ruff-format", "mypy"}
    checks = text(".ci/run")
    for entry in entries.values():
        python, _, module, *_ = entry.split()
        assert python == ".venv/bin/python" and f"-m {module}" in checks


def test_workflow_runs_the_checks_on_both_versions_of_python():
    jobs = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"]
    (job,) = jobs.values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert job["steps"][-1] == {"run": ".ci/run"} and (ROOT / ".ci/run").stat().st_mode & 0o111
