"""The same work done the plain way, to compare with.

Written from a description of what the published training and evaluation do, not from their code; and given the same
weights and boxes, it computes the same numbers as this project, which a test asserts.
"""

from .alignment import alignment_loss
from .images import CropGridDataset
from .regions import box_features, mask_features, valid_boxes
from .towers import dense_features, image_embeddings

__all__ = [
    'CropGridDataset',
    'alignment_loss',
    'box_features',
    'dense_features',
    'image_embeddings',
    'mask_features',
    'valid_boxes',
]
