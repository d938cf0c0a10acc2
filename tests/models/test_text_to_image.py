"""Options of sampling, random numbers of rows, drawing and choosing."""

import pytest
import torch
from PIL import Image

from models.clip import Ranking
from models.generation import GenerationConfig, Hypothesis
from models.text_to_image import Painter, check_files, code_options, row_generators, sample_codes
from models.vqgan import VQGAN, to_pil
from tests.tasks.image_gen_world import VQGAN_SIZES
from utils.errors import UserError


@pytest.fixture(scope="module")
def vqgan():
    torch.manual_seed(0)
    return VQGAN(VQGAN_SIZES).eval()


def hypotheses(count, first):
    generator = torch.Generator().manual_seed(count)
    codes = torch.randint(64, (count, 4), generator=generator) + first
    return [Hypothesis(torch.cat([own, torch.tensor([2])]), 0.0, torch.zeros(5)) for own in codes]


class Redness:
    """Ranks images by red, whatever is asked for."""

    def rerank(self, images, target):
        scores = torch.tensor([image.resize((1, 1)).getpixel((0, 0))[0] / 255 for image in images])
        ordered = scores.sort(descending=True, stable=True)
        return Ranking(ordered.indices, ordered.values)


def test_every_image_has_all_its_codes():
    config = GenerationConfig(beam=2, sampling_topk=5, **code_options(100, 64, 16))
    assert (config.sampling, config.gen_code, config.min_len, config.max_len_b) == (True, True, 16, 16)
    assert config.token_range == (100, 164) and code_options(100, 64, 16, "110,120")["constraint_range"] == "110,120"
    for wrong in ("99,120", "110,165", "4,9"):
        with pytest.raises(UserError, match=f"--constraint-range {wrong} has ids that are not image codes"):
            code_options(100, 64, 16, wrong)


def test_rows_have_random_numbers_of_their_own():
    def draws(seed, rows):
        return [torch.rand(3, generator=own).tolist() for own in row_generators(seed, rows, torch.device("cpu"))]

    assert draws(1, [4, 5]) == [draws(1, [4])[0], draws(1, [5])[0]]
    assert len({tuple(own) for seed in (1, 2) for own in draws(seed, range(50))}) == 100


def test_rounds_are_concatenated(tiny_model):
    config = GenerationConfig(beam=2, **code_options(50265, 8192, 4))
    inputs = {"src_tokens": torch.tensor([[0, 99, 16, 2], [0, 5, 2, 1]])}
    generators = row_generators(0, [0, 1], torch.device("cpu"))
    samples = sample_codes([tiny_model], inputs, config, times=3, generators=generators)
    assert [len(own) for own in samples] == [6, 6]
    assert len({tuple(h.tokens.tolist()) for own in samples for h in own}) == 12
    again = sample_codes([tiny_model], inputs, config, 3, row_generators(0, [0, 1], torch.device("cpu")))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(sum(samples, []), sum(again, []), strict=True))


def test_drawing_in_parts_is_drawing_one_by_one(vqgan):
    painter = Painter(vqgan, None, first_code=100, batch_size=2)
    samples = hypotheses(5, 100)
    images = painter.draw([sample.tokens for sample in samples])
    for image, sample in zip(images, samples, strict=True):
        (alone,) = to_pil(vqgan.decode(sample.tokens[None, :-1] - 100))
        assert image.size == (16, 16)
        difference = torch.tensor(list(image.tobytes())) - torch.tensor(list(alone.tobytes()))
        assert difference.abs().max() <= 1  # rounding of the convolutions at a truncation


def test_the_best_comes_first_for_each_prompt(vqgan):
    samples = [hypotheses(4, 0), hypotheses(3, 0)]
    chosen = Painter(vqgan, Redness(), 0).choose(samples, ["a", "b"])
    assert [len(own) for own in chosen] == [4, 3]
    for own, given in zip(chosen, samples, strict=True):
        scores = [image.score for image in own]
        assert scores == sorted(scores, reverse=True)
        assert {id(image.hypothesis) for image in own} == {id(sample) for sample in given}
        for image in own:
            (drawn,) = Painter(vqgan, None, 0).draw([image.hypothesis.tokens])
            assert isinstance(image.image, Image.Image) and drawn.size == image.image.size
            assert Redness().rerank([drawn], "").scores.item() == pytest.approx(image.score, abs=1 / 254)
    plain = Painter(vqgan, None, 0).choose(samples, ["a", "b"])
    assert [image.hypothesis for image in plain[0]] == samples[0] and plain[1][0].score is None


def test_missing_files(tmp_path):
    (tmp_path / "last.ckpt").touch()
    check_files({"--vqgan-model-path": str(tmp_path / "last.ckpt")})
    for flag, path, words in (
        ("--vqgan-model-path", None, "--vqgan-model-path is missing: name the file of the VQGAN's last.ckpt"),
        ("--clip-model-path", "no/x.pt", "There is no no/x.pt: put OpenAI's ViT-B-16.pt there, or name it with --clip"),
    ):
        with pytest.raises(UserError, match=words):
            check_files({flag: path})
    with pytest.raises(UserError, match="--vqgan-config-path is missing"):
        Painter.load(str(tmp_path / "last.ckpt"), None, None, 0, 64)
