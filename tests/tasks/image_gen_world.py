"""Small files of text-to-image generation: rows, a VQGAN and a CLIP with random weights in the released layouts."""

import torch

from models.vqgan import VQGAN, VQGANConfig
from tests.models.test_clip import released_weights
from tests.programs import SMALL

CODES, SIDE = 64, 32  # images of 4 x 4 codes
COUNT = (SIDE // 8) ** 2
FIRST = 50265  # id of code 0
CAPTIONS = ["a red seven", "a/b blue three", "two green ones", "a white zero on the left", "a five", "a yellow nine"]
VQGAN_SIZES = VQGANConfig(
    ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=8, embed_dim=8, n_embed=CODES
)
ARGS = [
    *SMALL, "--task=image_gen", "--image-bucket-size=8",
    "--criterion=adjust_label_smoothed_cross_entropy", "--optimizer=adam", "--lr=1e-3", "--lr-scheduler=fixed",
    "--selected-cols=0,2,1", f"--code-dict-size={CODES}", "--num-bins=0", f"--code-image-size={SIDE}",
    "--bpe-dir=utils/BPE", "--batch-size=2", "--num-workers=0",
]  # fmt: skip


def write_models(folder):
    """Flags that name a VQGAN and a CLIP, written to a folder."""
    torch.manual_seed(0)
    vqgan = VQGAN(VQGAN_SIZES)
    torch.nn.init.normal_(vqgan.quantize.embed.weight, std=4.0)  # images that differ
    vqgan.save(folder / "last.ckpt", folder / "model.yaml")
    torch.save(released_weights(), folder / "ViT-B-16.pt")
    names = {"vqgan-model-path": "last.ckpt", "vqgan-config-path": "model.yaml", "clip-model-path": "ViT-B-16.pt"}
    return {flag: f"--{flag}={folder / name}" for flag, name in names.items()}


def write_rows(path, captions=CAPTIONS):
    """A file of id, codes and caption."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(CODES, (len(captions), COUNT), generator=generator).tolist()
    rows = zip(codes, captions, strict=True)
    path.write_text("".join(f"id{i}\t{' '.join(map(str, own))}\t{text}\n" for i, (own, text) in enumerate(rows)))
    return path


def write_world(folder):
    """The folder, with rows and models in it, and the models' flags."""
    write_rows(folder / "rows.tsv")
    return folder, write_models(folder)
