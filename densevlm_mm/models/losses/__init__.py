"""Losses of the distillers."""

from .decoupled_alignment import DecoupledAlignmentLoss

__all__ = ['DecoupledAlignmentLoss']
