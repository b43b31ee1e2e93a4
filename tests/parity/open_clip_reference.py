"""Writes a CoCa of open_clip's with random weights, and what it does: ``python open_clip_reference.py FOLDER [NAME]``.

For the Python of another environment, which has open_clip but not this package: torch, ``transformers==4.49.0`` (whose beam
search open_clip imports), safetensors, ftfy, regex, and without their dependencies open-clip-torch, timm and torchvision. NAME is
one of open_clip's configurations (``coca_ViT-B-32``); without it a tiny one is made.

In the folder: ``config.json``, ``model.safetensors``, ``reference.npz``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

TINY = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "attentional_pool": True,
        "attn_pooler_queries": 6, "attn_pooler_heads": 2, "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 12, "vocab_size": 90, "width": 24, "heads": 3, "layers": 2, "embed_cls": True, "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 12, "vocab_size": 90, "width": 24, "heads": 2, "layers": 3, "attn_pooler_heads": 2},
    "custom_text": True,
}  # fmt: skip


def declare_operators() -> None:
    """Lets torchvision load that was installed for another torch: its operators are declared, its transforms need none."""
    library = torch.library.Library("torchvision", "DEF")
    for _ in range(60):
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            if "does not exist" not in str(error):
                raise
            library.define(str(error).split("torchvision::")[1].split()[0] + "(Tensor a) -> Tensor")
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
        else:
            declare_operators.library = library  # type: ignore[attr-defined]  # which lives as long as it is needed
            return


def main(folder: Path, name: str | None) -> None:
    """Writes all three files."""
    declare_operators()
    import open_clip
    from open_clip.coca_model import CoCa
    from safetensors.torch import save_file

    torch.manual_seed(0)
    if name is None:
        config, model = TINY, CoCa(**{option: value for option, value in TINY.items() if option != "custom_text"})
    else:
        config, model = open_clip.get_model_config(name), open_clip.create_model(name, pretrained=None)
    model.eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            # Biases and norms too; matrices of the size that keeps what they make the size of what they read.
            spread = 0.2 if weight.dim() < 2 else 1.5 * weight.shape[-1] ** -0.5
            start = weight if weight.dim() < 2 else 0.0
            weight.copy_(start + spread * torch.randn(weight.shape, generator=generator))
        model.logit_scale.fill_(3.0)
        # Start and padding, which ours never writes, are unlikely; the end is likely, so that some captions end early.
        model.text_decoder.text_projection[:, [0, -2]] = 0.0
        model.text_decoder.text_projection[:, -1] *= 2.0
    text, size = config["text_cfg"], config["vision_cfg"]["image_size"]
    length, vocabulary = text["context_length"], text["vocab_size"]
    images = torch.randn(4, 3, size, size, generator=generator)
    ids = torch.randint(1, vocabulary - 2, (4, length), generator=generator)
    ids[:, 0] = vocabulary - 2
    lengths = [length, length - 1, length // 2, 3]
    for row, real in enumerate(lengths):
        ids[row, real - 1] = vocabulary - 1
        ids[row, real:] = 0
    sequence = min(20, length - 1)
    options = {"sot_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "seq_len": sequence, "min_seq_len": 5}
    with torch.no_grad():
        output = model(images, ids)
        written = model.generate(images, generation_type="top_k", top_k=1, fixed_output_length=True, **options)
        patches = model.visual.transformer(model.visual._embeds(images))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "model.safetensors")
    np.savez(
        folder / "reference.npz",
        images=images.permute(0, 2, 3, 1).numpy(),
        token_ids=ids.numpy(),
        patches=patches.numpy(),
        image_embedding=output["image_features"].numpy(),
        text_embedding=output["text_features"].numpy(),
        caption_logits=output["logits"].numpy(),
        scale=output["logit_scale"].numpy(),
        written=written.numpy(),
        sequence=sequence,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
