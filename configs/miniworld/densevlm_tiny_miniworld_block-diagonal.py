# Ablation: stuff is aligned over stuff classes only, as things are over things.
_base_ = './densevlm_tiny_miniworld.py'
model = dict(loss=dict(stuff_classes='stuff'))
