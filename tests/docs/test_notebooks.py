"""The notebooks: small, stored without outputs, and they run from the first cell to the last."""

from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient

from tests.programs import interpreter

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
pytestmark = pytest.mark.slow
# Notebook -> what holds after its last cell with any decent checkpoint.
RESULTS = {
    "captioning": "right >= 9 and len(captions) == 12",
    "vqa": "sum(marks['how']) >= 8 and sum(map(sum, marks.values())) >= 30",
    "grounding": "sum(overlaps) / len(overlaps) > 0.4",
    "fine_tuning": "right >= 20 and before.text.startswith('a ')",
}


@pytest.fixture
def forked_kernels(monkeypatch):
    """Kernels are forks that have imported our packages, which takes longer than most notebooks do."""
    spec = KernelSpec(argv=[interpreter(), "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python")
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: spec)


@pytest.fixture
def quiet_folders(tmp_path, monkeypatch):
    """What notebooks and their kernels write goes to a folder of the test."""
    for name in ("TMPDIR", "HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_every_notebook_is_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == RESULTS.keys()


@pytest.mark.parametrize("name", RESULTS)
def test_it_runs(name, forked_kernels, quiet_folders):
    path = FOLDER / f"{name}.ipynb"
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert 8 <= len(book.cells) <= 15 and path.stat().st_size < 200_000
    assert not any(cell.get("outputs") for cell in book.cells)
    book.cells.append(nbformat.v4.new_code_cell(f"assert {RESULTS[name]}"))
    # In memory: the file stays as it is. The kernel starts in its folder, as Jupyter's does.
    place = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(book, timeout=600, startup_timeout=600, kernel_name="python3", resources=place).execute()
    assert [cell.cell_type for cell in book.cells if cell.get("outputs")]
