"""Hooks and loops of the runner."""

from .bad_image_hook import BadImageHook
from .decoupled_loss_hook import DecoupledLossHook
from .resumable_loop import ResumableTrainLoop
from .vlm_meta_hook import VLMMetaHook
from .weight_ensemble_hook import WeightEnsembleHook

__all__ = ['BadImageHook', 'DecoupledLossHook', 'ResumableTrainLoop', 'VLMMetaHook', 'WeightEnsembleHook']
