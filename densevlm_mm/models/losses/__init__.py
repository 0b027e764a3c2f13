"""Losses of the distillers."""

from .correlation import CorrelationLoss
from .cosine import CosineLoss
from .decoupled_alignment import DecoupledAlignmentLoss
from .federated_bce import FederatedBCELoss

__all__ = ['CorrelationLoss', 'CosineLoss', 'DecoupledAlignmentLoss', 'FederatedBCELoss']
