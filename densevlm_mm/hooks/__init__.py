"""Hooks and loops of the runner."""

from .decoupled_loss_hook import DecoupledLossHook
from .resumable_loop import ResumableTrainLoop
from .weight_ensemble_hook import WeightEnsembleHook

__all__ = ['DecoupledLossHook', 'ResumableTrainLoop', 'WeightEnsembleHook']
