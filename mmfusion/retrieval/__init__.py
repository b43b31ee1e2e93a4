"""Embed a collection, index it, search it, rerank it."""

from mmfusion.retrieval.image_index import Hit, ImageIndex, check_query, list_images

__all__ = ["Hit", "ImageIndex", "check_query", "list_images"]
