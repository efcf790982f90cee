"""Networks that take more than images: words beside a map, tokens that look at one."""

import torch
from torch import nn

from cvattn import CrossAttention2d, SelfAttention2d

WORDS = ["a", "cat", "</b>", "on", "grass"]


class Conditioned(nn.Module):
    """Two grids, attention to words on each, and words that attend to each other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.text = nn.MultiheadAttention(6, 2, batch_first=True)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.fine = CrossAttention2d(16, context_channels=6, num_heads=2)
        self.down = nn.Conv2d(16, 16, 2, stride=2)
        self.self_attention = SelfAttention2d(16, num_heads=2)
        self.coarse = CrossAttention2d(16, context_channels=6, num_heads=2)
        for block in (self.fine, self.self_attention, self.coarse):
            nn.init.constant_(block.gamma, 0.7)

    def forward(self, images, text):
        text = self.text(text, text, text, need_weights=False)[0]
        x = self.fine(self.stem(images), text)
        return self.coarse(self.self_attention(self.down(x)), text)


class Queries(nn.Module):
    """Three learned tokens that attend to the positions of a map."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(9)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.tokens = nn.Parameter(torch.randn(1, 3, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images):
        keys = self.stem(images).flatten(2).mT
        return self.attention(self.tokens, keys, keys, need_weights=False)[0]
