"""FID and Inception score: formulas, the released procedure, statistics files."""

import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from metrics import fid
from metrics.fid import (
    Inception,
    Statistics,
    batches,
    fid_main,
    folder_statistics,
    frechet_distance,
    images_below,
    inception_score,
    inception_score_main,
    read_statistics,
    released_scaling,
    released_selection,
    statistics,
    write_statistics,
)
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Random weights under torchvision's names."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / fid.WEIGHTS
    torch.save(Inception().net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five small images, one of them below, and a file that is none."""
    path = tmp_path_factory.mktemp("pictures")
    (path / "sub").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpeg", "c.PNG", "d.webp", "sub/e.png"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path / name)
    for name in ("readme.txt", "a.png.txt", "jpg"):
        (path / name).write_text("no image")
    return path


def gaussian(mu, sigma) -> Statistics:
    return Statistics(np.array(mu, dtype=np.float64), np.array(sigma, dtype=np.float64))


# FID


def test_distance_of_independent_features():
    first, second = gaussian([0, 1], [[4, 0], [0, 9]]), gaussian([3, 1], [[1, 0], [0, 25]])
    assert frechet_distance(first, second) == pytest.approx(9 + (2 - 1) ** 2 + (3 - 5) ** 2)


def test_distance_of_correlated_features_by_the_symmetric_form():
    rng = np.random.default_rng(1)
    first, second = (statistics(rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6))) for _ in range(2))
    half = scipy.linalg.sqrtm(first.sigma)
    values = np.linalg.eigvalsh(half @ second.sigma @ half)
    expected = ((first.mu - second.mu) ** 2).sum() + np.trace(first.sigma + second.sigma) - 2 * np.sqrt(values).sum()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-8)


def test_covariances_without_full_rank():
    features = np.random.default_rng(2).normal(size=(5, 20))  # fewer images than features
    stats = statistics(features)
    assert frechet_distance(stats, stats) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(gaussian([0, 0], np.zeros((2, 2))), gaussian([0, 2], np.zeros((2, 2)))) == pytest.approx(4)


def test_a_root_that_is_not_finite_gets_an_offset():
    # The product [[0, 1e-4], [0, 0]] has no square root.
    first, second = gaussian([0, 0], [[1, 0], [0, 0]]), gaussian([0, 0], [[0, 1e-4], [1e-4, 1]])
    assert not np.isfinite(fid._root(first.sigma @ second.sigma)).all()
    offset = np.eye(2) * 1e-6
    root = scipy.linalg.sqrtm((first.sigma + offset) @ (second.sigma + offset))
    assert np.isfinite(root).all()
    assert frechet_distance(first, second) == pytest.approx(2 - 2 * np.trace(root).real)


def test_an_imaginary_root_is_refused():
    with pytest.raises(UserError, match="imaginary part 1"):
        frechet_distance(gaussian([0], [[1]]), gaussian([0], [[-1]]))


def test_other_widths_are_refused():
    with pytest.raises(UserError, match="1 and 2 features"):
        frechet_distance(gaussian([0], [[1]]), gaussian([0, 0], np.eye(2)))


def test_statistics_are_unbiased():
    stats = statistics(np.array([[0.0, 2.0], [2.0, 2.0], [4.0, 5.0]]))
    assert stats.mu.tolist() == [2, 3] and stats.sigma.tolist() == [[4, 3], [3, 3]]
    assert statistics(np.array([[1.0], [3.0]])).sigma.tolist() == [[2]]
    with pytest.raises(UserError, match="two images"):
        statistics(np.zeros((1, 3)))


def test_the_released_scaling():
    scaled = released_scaling(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)).flatten(1)
    expected = torch.tensor([[-0.030, -0.088, -0.188], [0.458 - 0.030, 0.448 - 0.088, 0.450 - 0.188]])
    torch.testing.assert_close(scaled, expected, atol=1e-6, rtol=0)


def test_the_released_way_drops_the_rest():
    files = [Path(str(number)) for number in range(10)]
    assert released_selection(files, 4) == (files[:8], 4)
    assert released_selection(files, 10) == (files, 10)
    assert released_selection(files, 11) == (files, 1)


# the model


def hooked_features(net: Inception, images: torch.Tensor, layer: str) -> torch.Tensor:
    """What torchvision's own pass gives at a layer, averaged over positions."""
    found = []
    handle = net.net.get_submodule(layer).register_forward_hook(lambda *args: found.append(args[2]))
    net.net(images)
    handle.remove()
    return found[0].mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("dims", "layer"), [(64, "maxpool1"), (192, "maxpool2"), (768, "Mixed_6e"), (2048, "Mixed_7c")]
)
def test_features_are_those_of_torchvision(weights, dims, layer):
    images = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    net = Inception(weights, dims)
    features = net.features(images)
    assert features.shape == (1, dims)
    torch.testing.assert_close(features, hooked_features(net, released_scaling(images), layer))


def test_folders_give_statistics_of_whole_batches(weights, folder):
    files = images_below(folder)
    assert [path.name for path in files] == ["a.png", "b.jpeg", "c.PNG", "d.webp", "e.png"]
    net = Inception(weights, 64)
    features = torch.cat([net.features(batch) for batch in batches(files, 5)]).double().numpy()
    found = folder_statistics(folder, net, CPU, batch_size=2)
    np.testing.assert_allclose(found.mu, features[:4].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.sigma, np.cov(features[:4], rowvar=False), rtol=1e-3, atol=1e-8)


# Inception score


def test_score_of_certain_and_varied_images():
    assert inception_score(np.eye(10)) == (pytest.approx(10), 0)
    assert inception_score(np.full((7, 10), 0.1)) == (pytest.approx(1), 0)


def test_score_by_the_direct_formula():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), size=9)

    def direct(rows):
        marginal = rows.mean(axis=0)
        return math.exp(
            sum(sum(q * math.log(q / m) for q, m in zip(row, marginal, strict=True)) for row in rows) / len(rows)
        )

    assert inception_score(p)[0] == pytest.approx(direct(p))
    halves = [direct(p[:4]), direct(p[4:8])]
    assert inception_score(p, 2) == (pytest.approx(np.mean(halves)), pytest.approx(np.std(halves)))
    with pytest.raises(UserError, match="9 images cannot be split into 10"):
        inception_score(p, 10)


# files and programs


def test_statistics_files_round_trip(tmp_path):
    stats = gaussian([1, 2], [[2, 1], [1, 3]])
    write_statistics(stats, tmp_path / "x.npz")
    found = read_statistics(tmp_path / "x.npz")
    assert np.array_equal(found.mu, stats.mu) and np.array_equal(found.sigma, stats.sigma)


def test_bad_statistics_files_are_one_sentence(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(UserError, match="cannot be read"):
        read_statistics(path)
    np.savez(path, mu=np.zeros(2))
    with pytest.raises(UserError, match="no arrays mu and sigma"):
        read_statistics(path)
    np.savez(path, mu=np.zeros(2), sigma=np.array([object()]))
    with pytest.raises(UserError, match="no arrays mu and sigma"):
        read_statistics(path)
    np.savez(path, mu=np.zeros(2), sigma=np.eye(3))
    with pytest.raises(UserError, match="do not fit"):
        read_statistics(path)


def test_the_fid_program(weights, folder, tmp_path, capsys):
    common = ["--dims=64", "--batch-size=5", f"--inception={weights}"]
    stats = tmp_path / "stats.npz"
    assert fid_main([f"--path1={folder}", f"--save-stats={stats}", *common]) == 0
    assert read_statistics(stats).mu.shape == (64,)
    capsys.readouterr()
    assert fid_main([f"--path1={folder}", f"--path2={stats}", *common]) == 0
    label, value = capsys.readouterr().out.split()
    assert label == "FID:" and abs(float(value)) < 1e-3
    assert fid_main([f"--path1={folder}", "--path2=none.npz", *common]) == 2
    assert "none.npz cannot be read" in capsys.readouterr().err


def test_the_inception_score_program(weights, folder, capsys):
    assert inception_score_main([f"--path1={folder}", f"--inception={weights}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    net = Inception(weights)
    (batch,) = batches(images_below(folder), 5)
    expected = inception_score(net.probabilities(batch).numpy())[0]
    assert lines[0].startswith("IS mean: ") and float(lines[0].split()[-1]) == pytest.approx(expected, rel=1e-5)
    assert lines[1] == "IS std:  0.0"


@pytest.mark.parametrize("program", ["fid_score", "inception_score"])
def test_the_run_scripts_say_what_is_missing(program, folder, monkeypatch, capsys):
    flags = [f"--path1={folder}", "--inception=none.pth"] + (["--path2=x.npz"] if program == "fid_score" else [])
    monkeypatch.setattr(sys, "argv", [program, *flags])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / f"run_scripts/image_gen/{program}.py"), run_name="__main__")
    assert end.value.code == 2
    assert f"put torchvision's {fid.WEIGHTS} there" in capsys.readouterr().err


def test_unusable_input_is_one_sentence(tmp_path, weights):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="another model"):
        Inception(tmp_path / "other.pth")
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="x.png cannot be read as an image"):
        fid.read_image(tmp_path / "x.png")
    with pytest.raises(UserError, match="has no images"):
        images_below(tmp_path / "nowhere")
