"""Measurements of this project's speed against the same work done the plain way; docs/performance.md is their page."""

from .evaluate import measure_evaluate
from .inference import measure_inference
from .loader import measure_loader
from .options import EvaluateOptions, InferenceOptions, LoaderOptions, Options, StepOptions
from .report import as_document, as_text
from .step import measure_step

#: What is asked for and what measures it, by name.
BENCHMARKS = {
    'step': (StepOptions, measure_step),
    'loader': (LoaderOptions, measure_loader),
    'evaluate': (EvaluateOptions, measure_evaluate),
    'inference': (InferenceOptions, measure_inference),
}

__all__ = [
    'BENCHMARKS',
    'EvaluateOptions',
    'InferenceOptions',
    'LoaderOptions',
    'Options',
    'StepOptions',
    'as_document',
    'as_text',
    'measure_evaluate',
    'measure_inference',
    'measure_loader',
    'measure_step',
]
