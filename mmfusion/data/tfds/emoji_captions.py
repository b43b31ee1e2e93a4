"""The built-in set for TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow as tf
import tensorflow_datasets as tfds

from mmfusion.data.builtin import LANGUAGES, read_builtin
from mmfusion.data.decoding import decode_image
from mmfusion.data.example import Example


class EmojiCaptions(tfds.core.GeneratorBasedBuilder):
    """Twemoji pictures with their names; nothing is downloaded. See `mmfusion.data.read_builtin`.

    Features: ``image`` (72 × 72, over white), ``captions`` (strings) and ``name``. There is a config for each language,
    the default is English. Splits: ``train`` and ``validation`` (held-out skin-tone variants).

    The pictures are Twemoji, © Twitter, Inc and other contributors, CC-BY 4.0.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    # Nothing is downloaded, so there are no checksums to look for. (TFDS 4.9.10 looks for them with the package
    # importlib_resources, which it does not require.)
    url_infos: ClassVar[dict[str, Any]] = {}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name=language, description=f"Names in {language}.") for language in LANGUAGES
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Twemoji pictures (CC-BY 4.0) with their CLDR names.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "name": tfds.features.Text(),
                }
            ),
            homepage="https://github.com/jdecked/twemoji",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        assert self.builder_config is not None
        source = read_builtin([self.builder_config.name])
        return {
            "train": self._generate_examples(source.splits["train"]),
            "validation": self._generate_examples(source.splits["val"]),
        }

    def _generate_examples(self, examples: list[Example]) -> Iterator[tuple[str, dict[str, Any]]]:
        for example in examples:
            image = decode_image(tf.constant(example.image.read())).numpy()
            yield example.name, {"image": image, "captions": list(example.captions), "name": example.name}
