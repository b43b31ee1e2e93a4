"""The peers of `captioning.py`, each in a process of its own that answers lines of JSON; torch and its like alone are needed.

    python captioning_peers.py coca FOLDER      # open_clip's CoCa ViT-B/32: writes config.json, model.safetensors, images.npy
    python captioning_peers.py blip FOLDER      # transformers' BLIP base

How they are asked is in `peer_process.py`. `MMFUSION_OPEN_CLIP_PYTHON` names the Python that has open_clip: torch,
transformers==4.49.0, safetensors, ftfy, regex, and without their dependencies open-clip-torch, timm and torchvision.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peer_process import Methods, answer, write_checkpoint


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


def coca(folder: Path, options: dict[str, Any]) -> tuple[Methods, str]:
    """open_clip's CoCa: its weights and pictures in the folder, and what it can be asked."""
    declare_operators()
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("coca_ViT-B-32", pretrained=None).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Of the size that keeps what they make the size of what they read: words differ, nothing is a near tie.
            if weight.dim() > 1:
                weight.copy_(1.5 * weight.shape[-1] ** -0.5 * torch.randn(weight.shape))
        # Ours never writes start and padding; that nothing ends lets all write as many tokens.
        model.text_decoder.text_projection[:, [0, -2, -1]] = 0.0
    images = torch.randn(options["images"], 3, 224, 224)
    write_checkpoint(folder, open_clip.get_model_config("coca_ViT-B-32"), model.state_dict(), images)
    length: dict[str, Any] = {"seq_len": options["tokens"], "fixed_output_length": True}
    asked: dict[str, dict[str, Any]] = {
        "greedy": {"generation_type": "top_k", "top_k": 1},
        "top_p": {"generation_type": "top_p", "top_p": 0.1},
        "beams": {"generation_type": "beam_search", "num_beams": 6, "num_beam_groups": 3},
    }
    methods = {name: lambda how=how: model.generate(images, **how, **length) for name, how in asked.items()}
    return methods, f"open_clip {open_clip.__version__}, torch {torch.__version__}"


def blip(folder: Path, options: dict[str, Any]) -> tuple[Methods, str]:
    """transformers' BLIP: its weights and pictures in the folder, and what it can be asked."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BlipConfig()
    # As the published base has it, not as the class does.
    config.text_config.num_attention_heads = 12
    model = transformers.BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.copy_(1.2 * weight.shape[-1] ** -0.5 * torch.randn(weight.shape))
    size = config.vision_config.image_size
    images = torch.randn(options["images"], 3, size, size)
    write_checkpoint(folder, config.to_dict(), model.state_dict(), images)
    # The start and end tokens that it puts around a text are not counted.
    length = {"max_new_tokens": options["tokens"], "min_new_tokens": options["tokens"]}
    methods: Methods = {
        name: lambda beams=beams: model.generate(pixel_values=images, num_beams=beams, do_sample=False, **length)
        for name, beams in (("greedy", 1), ("beams", 3))
    }
    methods["vision"] = lambda: model.vision_model(images)[0][:, 0, :1]
    return methods, f"transformers {transformers.__version__}, torch {torch.__version__}"


def main(family: str, folder: Path, options: dict[str, Any]) -> None:
    """Answers until there is nothing more to read."""
    torch.set_num_threads(options["threads"])
    methods, name = {"coca": coca, "blip": blip}[family](folder, options)
    answer(methods, name)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
