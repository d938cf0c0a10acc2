"""Our checkpoints in the original: what its code asks of a file's options is there, with its own defaults."""

import pytest
from omegaconf import OmegaConf

from models.ofa import OFA, OFAConfig
from models.predictor import describe
from models.weights import load_model, model_config, save_model
from tests.ofa_module.engine.test_trainer import make_trainer
from utils.checkpoint import load_checkpoint, save_checkpoint

# The original's model fills in what is absent, in this order, after the function of the named size did; a file's
# options take no new ones (OmegaConf's struct flag). From its description: those of the sizes, then the generic ones.
OF_SIZES = {
    "encoder_embed_path": None, "encoder_learned_pos": True, "decoder_embed_path": None, "decoder_learned_pos": True,
    "relu_dropout": 0.0, "adaptive_softmax_cutoff": None, "adaptive_softmax_dropout": 0,
    "decoder_output_dim": 256, "decoder_input_dim": 256, "no_scale_embedding": True, "activation_fn": "gelu",
    "pooler_activation_fn": "tanh", "pooler_dropout": 0.0, "pooler_classifier": "mlp", "orig_patch_image_size": 256,
    "token_bucket_size": 256, "image_bucket_size": 42, "attn_scale_factor": 2, "code_image_size": 128,
}  # fmt: skip
GENERIC = {
    "no_token_positional_embeddings": False, "adaptive_input": False, "no_cross_attention": False,
    "cross_self_attention": False, "encoder_layerdrop": 0, "decoder_layerdrop": 0, "encoder_layers_to_keep": None,
    "decoder_layers_to_keep": None, "quant_noise_pq": 0, "quant_noise_pq_block_size": 8, "quant_noise_scalar": 0,
    "tie_adaptive_weights": False, "checkpoint_activations": False, "offload_activations": False,
    "encoder_prompt": False, "decoder_prompt": False, "encoder_prompt_type": "prefix",
    "decoder_prompt_type": "prefix", "encoder_prompt_length": 100, "decoder_prompt_length": 100,
    "encoder_prompt_projection": False, "decoder_prompt_projection": False, "encoder_prompt_dim": 512,
    "decoder_prompt_dim": 512, "min_params_to_wrap": 10**8, "adapter": False, "adapter_dim": 200,
    "freeze_resnet": False, "interpolate_position": False, "resnet_model_path": None, "load_checkpoint_heads": False,
    "spectral_norm_classification_head": False, "patch_image_size": 480,
}  # fmt: skip
ARGS = ["--arch=ofa_tiny", "--lr=1e-5"]
DATA = "tests/golden/tsv/caption/caption_train.tsv"


def fill_in(args, options):
    """As the original does it, one after the other."""
    for name, default in options.items():
        setattr(args, name, getattr(args, name, "absent"))
        assert getattr(args, name) == default, name


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("file")
    trainer, _ = make_trainer(ARGS, folder, DATA)
    save_checkpoint(trainer.state_dict() | {"extra_state": {"train_iterator": {"epoch": 1}}}, folder / "ours.pt")
    return folder / "ours.pt"


def test_a_training_file_has_all_that_the_original_reads(file):
    cfg = OmegaConf.create(load_checkpoint(file)["cfg"])
    OmegaConf.set_struct(cfg, True)
    assert cfg.model._name == "ofa_tiny" and cfg.task._name == "caption"
    fill_in(cfg.model, OF_SIZES)
    fill_in(cfg.model, GENERIC)
    assert cfg.model.encoder_layers == 4 and cfg.model.scale_attn


def test_it_is_read_here_as_before(file):
    config = model_config(load_checkpoint(file))
    released = dict(scale_attn=True, scale_fc=True, scale_heads=True, disable_entangle=True)
    assert config == OFAConfig.from_arch("ofa_tiny", **released)
    assert describe(load_checkpoint(file)).task == "caption"


def test_a_saved_model_has_them_too(tmp_path):
    model = OFA(OFAConfig.from_arch("ofa_demo", vocab_size=40))
    save_model(model, tmp_path / "a.pt")
    cfg = OmegaConf.create(load_checkpoint(tmp_path / "a.pt")["cfg"])
    OmegaConf.set_struct(cfg, True)
    fill_in(
        cfg.model, {name: value for name, value in GENERIC.items() if not name.endswith(("_dim", "patch_image_size"))}
    )
    assert (cfg.model.decoder_output_dim, cfg.model.encoder_prompt_dim) == (128, 256)
    assert "patch_image_size" not in cfg.model  # a model does not know
    assert load_model(tmp_path / "a.pt").config == model.config
