"""Open-vocabulary detection on MMDetection: F-ViT and its parts."""

from .fvit import FViT
from .fvit_checkpoints import convert_fvit_checkpoint
from .fvit_roi_head import FViTRoIHead
from .lvis_metric import OVLVISMetric
from .ov_coco_metric import OVDetectionMetric
from .ov_datasets import OVCocoDataset, OVLVISDataset, OVObjects365Dataset
from .rpn_head import NormedRPNHead
from .score_fusion import ScoreFusion
from .text_classifier import TextEmbeddingClassifier
from .token_pyramid import TokenPyramid
from .vocabulary_loss import VocabularyCrossEntropyLoss

__all__ = [
    'FViT',
    'FViTRoIHead',
    'NormedRPNHead',
    'OVCocoDataset',
    'OVDetectionMetric',
    'OVLVISDataset',
    'OVLVISMetric',
    'OVObjects365Dataset',
    'ScoreFusion',
    'TextEmbeddingClassifier',
    'TokenPyramid',
    'VocabularyCrossEntropyLoss',
    'convert_fvit_checkpoint',
]
