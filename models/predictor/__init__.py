"""Questions put to a trained model from Python: one class, from files to answers."""

from models.predictor.images import ImageLike, read_image
from models.predictor.predictor import Box, OFAPredictor, Prediction
from models.weights.description import Description, describe

__all__ = ["Box", "Description", "ImageLike", "OFAPredictor", "Prediction", "describe", "read_image"]
