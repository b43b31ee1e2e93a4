"""Builders for TensorFlow Datasets; importing this module registers them.

Example:
    >>> import tensorflow_datasets as tfds
    >>> import mmfusion.data.tfds
    >>> tfds.builder_cls("flickr8k").__name__
    'Flickr8k'
"""

from __future__ import annotations

from mmfusion.data.tfds.emoji_captions import EmojiCaptions
from mmfusion.data.tfds.flickr8k import Flickr8k
from mmfusion.data.tfds.flickr30k import Flickr30k

__all__ = ["EmojiCaptions", "Flickr8k", "Flickr30k"]
