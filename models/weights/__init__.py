"""Builds models from checkpoints and saves them:

`loading` (whole models), `upgrade` (rules for older and other files), `bart`, `convert` (to other layouts), `card`
and `description` (what a checkpoint says of itself).
"""

from models.weights.loading import load_model, model_config, save_model
from models.weights.upgrade import LoadReport, upgrade_state_dict

__all__ = ["LoadReport", "load_model", "model_config", "save_model", "upgrade_state_dict"]
