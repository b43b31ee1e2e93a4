"""A small HTTP service over a run or an export; needs the extra ``serve``."""

from mmfusion.serving.app import build_app
from mmfusion.serving.batcher import Batcher, Batching
from mmfusion.serving.limits import Limits
from mmfusion.serving.metrics import Metrics
from mmfusion.serving.request_error import RequestError
from mmfusion.serving.served_model import ServedModel
from mmfusion.serving.server import serve

__all__ = ["Batcher", "Batching", "Limits", "Metrics", "RequestError", "ServedModel", "build_app", "serve"]
