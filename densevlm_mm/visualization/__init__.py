"""Pictures."""

from .confusion import plot_confusion
from .dense_prediction import class_colors, dense_labels, panoptic_labels, plot_dense_predictions

__all__ = ['class_colors', 'dense_labels', 'panoptic_labels', 'plot_confusion', 'plot_dense_predictions']
