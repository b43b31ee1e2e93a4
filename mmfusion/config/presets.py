"""Published models as compositions: plain data, readable without Keras, that a recipe names with one word."""

from __future__ import annotations

from typing import Any

Content = dict[str, Any]

#: What a preset decides: heads, how streams are read and pooled, the fusion style with its own options, the terms of the loss.
#: Everything else (sizes, data, training) is the recipe's. An encoder of depth 0 is its embedding alone. Where a paper pools by a
#: class token, the mean stands here: patches have no such token, and from nothing a mean learns sooner.
PRESETS: dict[str, Content] = {
    # Radford et al. 2021 (arXiv:2103.00020).
    "clip": {
        "model": {"heads": ["contrastive"], "causal_text": True, "text_pooling": "last"},
        "objective": {"contrastive": {"loss": "softmax"}, "matching": None, "captioning": None},
    },
    # Zhai et al. 2023 (arXiv:2303.15343).
    "siglip": {
        "model": {
            "heads": ["contrastive"],
            "image_pooling": "attention",
            "pooling_mlp_ratio": 4.0,
            "text_pooling": "last",
        },
        "objective": {"contrastive": {"loss": "sigmoid"}, "matching": None, "captioning": None},
    },
    # Yu et al. 2022 (arXiv:2205.01917).
    "coca": {
        "model": {
            "heads": ["contrastive", "captioning"],
            "image_pooling": "attention",
            "image_queries": 32,
            "causal_text": True,
            "text_pooling": "last",
        },
        "fusion": {"style": "cross"},
        "objective": {"contrastive": {"loss": "softmax"}, "matching": None, "captioning": {"weight": 2.0}},
    },
    # Li et al. 2021 (arXiv:2107.07651).
    "albef": {
        "model": {"heads": ["contrastive", "matching", "masked_language"]},
        "fusion": {"style": "cross"},
        "objective": {
            "contrastive": {"loss": "softmax"},
            "matching": {},
            "masked_language": {},
            "captioning": None,
            "momentum": {},
        },
    },
    # Li et al. 2022 (arXiv:2201.12086).
    "blip": {
        "model": {"heads": ["contrastive", "matching", "captioning"]},
        "fusion": {"style": "cross"},
        "objective": {"contrastive": {"loss": "softmax"}, "matching": {}, "captioning": {}},
    },
    # Kim et al. 2021 (arXiv:2102.03334).
    "vilt": {
        "model": {"heads": ["matching", "masked_language"], "image_encoder": {"depth": 0}, "text_encoder": {"depth": 0}},
        "fusion": {"style": "merged"},
        "objective": {"contrastive": None, "matching": {}, "masked_language": {}, "captioning": None},
    },
    # Lu et al. 2019 (arXiv:1908.02265).
    "vilbert": {
        "model": {"heads": ["matching", "masked_language"], "matching_tokens": "both"},
        "fusion": {"style": "co"},
        "objective": {"contrastive": None, "matching": {}, "masked_language": {}, "captioning": None},
    },
    # Tan and Bansal 2019 (arXiv:1908.07490).
    "lxmert": {
        "model": {"heads": ["matching", "masked_language"]},
        "fusion": {"style": "co", "shared_cross": True},
        "objective": {"contrastive": None, "matching": {}, "masked_language": {}, "captioning": None},
    },
    # Nagrani et al. 2021 (arXiv:2107.00135).
    "bottleneck": {
        "model": {"heads": ["contrastive", "matching", "captioning"]},
        "fusion": {"style": "bottleneck", "num_bottlenecks": 4},
        "objective": {"contrastive": {"loss": "softmax"}, "matching": {}, "captioning": {}},
    },
    # Alayrac et al. 2022 (arXiv:2204.14198). Its encoder and its decoder are frozen: see `FROZEN`.
    "flamingo": {
        "model": {"heads": ["captioning"]},
        "fusion": {"style": "resampler", "inner": "gated"},
        "objective": {"contrastive": None, "matching": None, "captioning": {}},
    },
    # Li et al. 2023 (arXiv:2301.12597). Its image encoder is frozen: see `FROZEN`.
    "blip2": {
        "model": {"heads": ["contrastive", "matching", "captioning"], "contrastive_tokens": "fusion"},
        # After one layer the queries have seen the image, after two the text has seen the queries.
        "fusion": {"style": "qformer", "depth": 2},
        "objective": {"contrastive": {"loss": "softmax"}, "matching": {}, "captioning": {}},
    },
    # Beyer et al., PaliGemma, 2024 (arXiv:2407.07726).
    "prefix": {
        "model": {"heads": ["captioning"], "text_encoder": {"depth": 0}},
        "fusion": {"style": "merged"},
        "objective": {"contrastive": None, "matching": None, "captioning": {}},
    },
    # Xu et al. 2015 (arXiv:1502.03044).
    "show_attend_tell": {
        "model": {"heads": ["captioning"], "text_encoder": {"depth": 0}},
        "fusion": {"style": "recurrent", "attention": "additive"},
        "objective": {"contrastive": None, "matching": None, "captioning": {"attention_coverage": 0.1}},
    },
}
#: What ``train.freeze`` takes to keep what a paper keeps. No preset does so by itself: its weights are fresh, and what is frozen
#: as it was drawn would never learn. It is for weights that were loaded.
FROZEN: dict[str, tuple[str, ...]] = {
    "flamingo": ("^image_encoder/", "^text_encoder/", "^fusion/(.*/)?language_"),
    "blip2": ("^image_encoder/",),
}
#: Sizes to build a preset with, without a recipe.
SIZES: dict[str, Content] = {
    name: {
        "model": {
            "embedding_dim": embedding_dim,
            "image_encoder": {"dim": dim, "depth": depth, "num_heads": num_heads},
            "text_encoder": {"dim": dim, "depth": depth // 2, "num_heads": num_heads},
        },
        "fusion": {"depth": depth // 2, "num_heads": num_heads},
    }
    for name, dim, depth, num_heads, embedding_dim in (
        ("tiny", 64, 2, 4, 64),
        ("small", 384, 8, 6, 256),
        ("base", 768, 12, 12, 512),
    )
}
