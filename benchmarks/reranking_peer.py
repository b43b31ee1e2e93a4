"""The peer of `reranking.py`, in a process of its own: transformers' `BlipForImageTextRetrieval`, base, with random weights.

It writes config.json, model.safetensors and images.npy, and can be asked for the matching logits of pairs of image and text
(see `peer_process.py`), those of candidates.npz: ``pairs`` as its `forward` does, which encodes the image of each pair;
``vision_once`` with each image encoded once and its tokens expanded for all texts about it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peer_process import Methods, answer, write_checkpoint


class Reranker:
    """The peer's model, and both ways to score the candidates of images.

    Args:
        folder: Where the weights are written, and the candidates are read when they are first asked for: ``token_ids`` and
            ``token_mask``, ``[I, C, T]``.
        options: ``images``; ``batch`` of pairs; ``published_pairs`` of each image that ``pairs`` scores; ``published_batch``;
            ``tiny``, for tests.
    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        torch.manual_seed(0)
        config = transformers.BlipConfig(**TINY) if options["tiny"] else transformers.BlipConfig()
        if not options["tiny"]:
            # As the published base has it, not as the class does.
            config.text_config.num_attention_heads = 12
        self.model = transformers.BlipForImageTextRetrieval(config).eval()
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if weight.dim() > 1 and "embed" not in name:
                    # A layer of text that adds much makes all texts alike, and no difference would show.
                    part = 0.4 if ".encoder.layer." in name else 1.2
                    weight.copy_(part * weight[0].numel() ** -0.5 * torch.randn(weight.shape))
        size = config.vision_config.image_size
        self.images = torch.randn(options["images"], 3, size, size)
        write_checkpoint(folder, config.to_dict(), self.model.state_dict(), self.images)
        self.folder, self.options = folder, options

    def texts(self, image: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The candidates of an image, ids and mask."""
        with np.load(self.folder / "candidates.npz") as found:
            return torch.from_numpy(found["token_ids"][image]).long(), torch.from_numpy(found["token_mask"][image]).long()

    def pairs(self) -> torch.Tensor:
        """As a user of its `forward` does, of the first candidates."""

        def score(image: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            pixels = image.expand(len(ids), -1, -1, -1)
            return self.model(pixel_values=pixels, input_ids=ids, attention_mask=mask).itm_score

        return self._scores(score, lambda image: image, self.options["published_batch"], self.options["published_pairs"])

    def vision_once(self) -> torch.Tensor:
        """As a user does who knows its parts."""

        def score(patches: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            patches = patches.expand(len(ids), -1, -1)
            tokens = self.model.text_encoder(
                input_ids=ids,
                attention_mask=mask,
                encoder_hidden_states=patches,
                encoder_attention_mask=torch.ones(patches.shape[:-1], dtype=torch.long),
            )
            return self.model.itm_head(tokens.last_hidden_state[:, 0])

        return self._scores(score, lambda image: self.model.vision_model(image).last_hidden_state, self.options["batch"])

    def _scores(self, score: Any, prepare: Any, batch: int, most: int | None = None) -> torch.Tensor:
        rows = []
        for index in range(len(self.images)):
            prepared = prepare(self.images[index : index + 1])
            ids, mask = self.texts(index)
            parts = []
            for start in range(0, len(ids) if most is None else min(most, len(ids)), batch):
                stop = min(start + batch, len(ids) if most is None else most)
                # Padded to the longest of the batch, as its tokenizer does.
                longest = int(mask[start:stop].sum(1).max())
                logits = score(prepared, ids[start:stop, :longest], mask[start:stop, :longest])
                parts.append(logits[:, 1] - logits[:, 0])
            rows.append(torch.cat(parts))
        return torch.stack(rows)


TINY = {
    "vision_config": {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32,
        "patch_size": 8,
    },
    "text_config": {
        "vocab_size": 200, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 40, "bos_token_id": 197, "sep_token_id": 198, "pad_token_id": 0,
    },
    "image_text_hidden_size": 10,
}  # fmt: skip


def main(folder: Path, options: dict[str, Any]) -> None:
    """Answers until there is nothing more to read."""
    torch.set_num_threads(options["threads"])
    reranker = Reranker(folder, options)
    methods: Methods = {"pairs": reranker.pairs, "vision_once": reranker.vision_once}
    answer(methods, f"transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
