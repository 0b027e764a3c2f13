# Variant: things and stuff are aligned over all classes, each group with a mean of its own, that of stuff counts twice.
_base_ = './densevlm_tiny_miniworld.py'
model = dict(loss=dict(thing_classes='all', stuff_weight=2.0))
