"""Hooks, loops and optimisers of the runner."""

from .autocast_optim_wrapper import AutocastOptimWrapper
from .bad_image_hook import BadImageHook
from .decay_groups import DecayGroups
from .decoupled_loss_hook import DecoupledLossHook
from .region_picture_hook import RegionPictureHook
from .resumable_loop import ResumableTrainLoop
from .vlm_meta_hook import VLMMetaHook
from .vocabulary_check_hook import VocabularyCheckHook
from .weight_ensemble_hook import WeightEnsembleHook

__all__ = [
    'AutocastOptimWrapper',
    'BadImageHook',
    'DecayGroups',
    'DecoupledLossHook',
    'RegionPictureHook',
    'ResumableTrainLoop',
    'VLMMetaHook',
    'VocabularyCheckHook',
    'WeightEnsembleHook',
]
