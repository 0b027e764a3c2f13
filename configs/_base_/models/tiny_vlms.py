# The mini world's two CLIPs: EVA-02's architecture with patches of 8 px and a vocabulary of whole words.
words = [
    'a', 'and', 'ball', 'boat', 'car', 'cup', 'earth', 'fish', 'flower', 'grass', 'house', 'moss', 'of', 'on', 'person',
    'photo', 'sand', 'sky', 'star', 'stone', 'tree', 'water', 'wood',
]  # fmt: skip
tiny_text = dict(context_length=18, width=64, heads=2, layers=2, words=words)
eva = dict(image_size=64, patch_size=8, head_width=32, mlp_ratio=2.6667, eva_model_name='tiny', pt_hw_seq_len=8)
eva.update(rope=True, naiveswiglu=True, subln=True)
student_arch = dict(embed_dim=64, vision_cfg=dict(eva, width=96, layers=4), text_cfg=tiny_text)
teacher_arch = dict(embed_dim=96, vision_cfg=dict(eva, width=128, layers=4), text_cfg=tiny_text)

miniworld_templates = ['a photo of a {}.']
miniworld_vocabulary = dict(
    things=['car', 'house', 'tree', 'person', 'ball', 'star', 'fish', 'cup', 'boat', 'flower'],
    stuff=['grass', 'moss', 'wood', 'earth', 'sky', 'water', 'sand', 'stone'],
)
