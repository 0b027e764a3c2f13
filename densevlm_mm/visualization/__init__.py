"""Pictures."""

from .class_styles import class_colors
from .confusion import plot_confusion
from .dense_prediction import dense_labels, panoptic_labels, plot_dense_predictions
from .detections import draw_detections
from .features import draw_features
from .regions import draw_regions
from .segmentation import draw_segmentation
from .similarity import draw_similarity

__all__ = [
    'class_colors',
    'dense_labels',
    'draw_detections',
    'draw_features',
    'draw_regions',
    'draw_segmentation',
    'draw_similarity',
    'panoptic_labels',
    'plot_confusion',
    'plot_dense_predictions',
]
