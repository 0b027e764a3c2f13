"""Open-vocabulary segmentation on MMSegmentation: training-free benchmarks and CAT-Seg."""

from .cat_seg import CATSeg, CATSegAggregator, convert_catseg_checkpoint
from .class_scores import LabelRule, label_map
from .image_counts import ImageCounts
from .iou_metric import OVIoUMetric
from .label_maps import LoadLabelMap
from .ov_seg_dataset import (
    ADE150SegDataset,
    ADE847SegDataset,
    CityscapesSegDataset,
    COCOObjectSegDataset,
    COCOStuffSegDataset,
    Context59SegDataset,
    Context60SegDataset,
    Context459SegDataset,
    OVSegDataset,
    VOC20bSegDataset,
    VOC20SegDataset,
    VOC21SegDataset,
)
from .preprocessor import MixedSizePreProcessor
from .protocols import Protocol, ProtocolError, list_protocols, read_protocol
from .training_free import TrainingFreeSegmentor
from .vocabulary_meta import VocabularySegmentor
from .windows import average_windows, sliding_windows

__all__ = [
    'ADE150SegDataset',
    'ADE847SegDataset',
    'CATSeg',
    'CATSegAggregator',
    'COCOObjectSegDataset',
    'COCOStuffSegDataset',
    'CityscapesSegDataset',
    'Context459SegDataset',
    'Context59SegDataset',
    'Context60SegDataset',
    'ImageCounts',
    'LabelRule',
    'LoadLabelMap',
    'MixedSizePreProcessor',
    'OVIoUMetric',
    'OVSegDataset',
    'Protocol',
    'ProtocolError',
    'TrainingFreeSegmentor',
    'VOC20SegDataset',
    'VOC20bSegDataset',
    'VOC21SegDataset',
    'VocabularySegmentor',
    'average_windows',
    'convert_catseg_checkpoint',
    'label_map',
    'list_protocols',
    'read_protocol',
    'sliding_windows',
]
