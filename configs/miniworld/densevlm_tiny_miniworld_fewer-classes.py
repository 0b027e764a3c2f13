# Ablation: the vocabulary is half of the classes that the images show.
_base_ = './densevlm_tiny_miniworld.py'
model = dict(vocabulary=dict(things=['car', 'house', 'tree', 'person', 'ball'], stuff=['grass', 'wood', 'sky', 'sand']))
