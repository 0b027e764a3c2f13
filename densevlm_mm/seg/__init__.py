"""Open-vocabulary segmentation on MMSegmentation: training-free benchmarks and CAT-Seg."""
