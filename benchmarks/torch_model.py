"""The twin: the architecture of `mmfusion.models.ImageTextModel` in idiomatic PyTorch, for the other benchmarks.

    python benchmarks/torch_model.py

prints how many parameters both have, and how far their outputs are apart once the weights are copied.

What a PyTorch user would do is done: one matrix for query, key and value, `F.scaled_dot_product_attention`, a convolution for
the patches, `is_causal` in place of a mask where captions are written (padding stands on the right, so it is hidden anyway).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from mmfusion.config import Recipe
    from mmfusion.models import ImageTextModel

_EPSILON = 1e-6


class SelfAttention(nn.Module):
    """Multi-head attention of a stream to itself."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self.output(attended.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of a stream into another."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(context_dim, 2 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        query = self.query(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.output(attended.transpose(1, 2).flatten(2))


class DropPath(nn.Module):
    """Stochastic depth, example by example."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * kept.to(branch.dtype) / (1.0 - self.rate)


class Block(nn.Module):
    """Pre-norm transformer block, with a look at a context if it has a width."""

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, *, dropout: float, drop_path: float = 0.0, context_dim: int | None = None
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=_EPSILON)
        self.attention = SelfAttention(dim, heads)
        self.cross_norm = None if context_dim is None else nn.LayerNorm(dim, eps=_EPSILON)
        self.cross = None if context_dim is None else CrossAttention(dim, context_dim, heads)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=_EPSILON)
        self.hidden = nn.Linear(dim, int(dim * mlp_ratio))
        self.output = nn.Linear(int(dim * mlp_ratio), dim)
        self.drop = nn.Sequential(nn.Dropout(dropout), DropPath(drop_path))

    def forward(self, tokens: Tensor, mask: Tensor | None = None, causal: bool = False, context: Tensor | None = None) -> Tensor:
        tokens = tokens + self.drop(self.attention(self.attention_norm(tokens), mask, causal))
        if self.cross is not None:
            tokens = tokens + self.drop(self.cross(self.cross_norm(tokens), context))
        return tokens + self.drop(self.output(F.gelu(self.hidden(self.feed_forward_norm(tokens)))))


class VisionEncoder(nn.Module):
    """Images ``[B, 3, H, W]`` to patch tokens ``[B, P, D]``."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        options = recipe.model.image_encoder
        height, width = recipe.data.size
        count = (height // options.patch_size) * (width // options.patch_size)
        self.projection = nn.Conv2d(3, options.dim, options.patch_size, stride=options.patch_size)
        self.position = nn.Parameter(torch.empty(count, options.dim).normal_(std=0.02))
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(
            Block(
                options.dim,
                options.num_heads,
                options.mlp_ratio,
                dropout=options.dropout,
                drop_path=options.stochastic_depth * index / max(options.depth - 1, 1),
            )
            for index in range(options.depth)
        )
        self.norm = nn.LayerNorm(options.dim, eps=_EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.dropout(self.projection(images).flatten(2).transpose(1, 2) + self.position)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class TextEncoder(nn.Module):
    """Token ids ``[B, T]`` to tokens ``[B, T, D]``, read both ways or left to right; its embedding is the output layer too."""

    def __init__(self, recipe: Recipe, vocabulary_size: int) -> None:
        super().__init__()
        options = recipe.model.text_encoder
        self.embedding = nn.Embedding(vocabulary_size, options.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.position = nn.Parameter(torch.empty(recipe.text.max_tokens, options.dim).normal_(std=0.02))
        self.output_bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(
            Block(options.dim, options.num_heads, options.mlp_ratio, dropout=options.dropout) for _ in range(options.depth)
        )
        self.norm = nn.LayerNorm(options.dim, eps=_EPSILON)

    def forward(self, token_ids: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        tokens = self.dropout(self.embedding(token_ids) + self.position[: token_ids.shape[1]])
        for block in self.blocks:
            tokens = block(tokens, mask, causal)
        return self.norm(tokens)

    def logits(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.embedding.weight, self.output_bias)


class Fusion(nn.Module):
    """Text tokens that look at image tokens."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        options, dim = recipe.fusion, recipe.model.text_encoder.dim
        self.blocks = nn.ModuleList(
            Block(
                dim,
                options.num_heads,
                options.mlp_ratio,
                dropout=options.dropout,
                context_dim=recipe.model.image_encoder.dim,
            )
            for _ in range(options.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=_EPSILON)

    def forward(self, text: Tensor, patches: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        for block in self.blocks:
            text = block(text, mask, causal, patches)
        return self.norm(text)


class TorchImageTextModel(nn.Module):
    """The twin of `ImageTextModel` with all three heads."""

    def __init__(self, recipe: Recipe, vocabulary_size: int) -> None:
        super().__init__()
        image_dim, dim, width = recipe.model.image_encoder.dim, recipe.model.text_encoder.dim, recipe.model.embedding_dim
        self.image_encoder = VisionEncoder(recipe)
        self.text_encoder = TextEncoder(recipe, vocabulary_size)
        self.fusion = Fusion(recipe)
        self.image_projection = nn.Linear(image_dim, width, bias=False)
        self.text_projection = nn.Linear(dim, width, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(()))
        self.match_transform = nn.Linear(dim, dim)
        self.match_output = nn.Linear(dim, 1)
        self.caption_transform = nn.Linear(dim, dim)
        self.caption_norm = nn.LayerNorm(dim, eps=_EPSILON)

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=100.0)

    def embed_image(self, patches: Tensor) -> Tensor:
        return F.normalize(self.image_projection(patches.mean(1)).float(), dim=-1, eps=_EPSILON)

    def embed_text(self, text: Tensor, mask: Tensor) -> Tensor:
        real = mask.unsqueeze(-1).to(text.dtype)
        return F.normalize(self.text_projection((text * real).sum(1) / real.sum(1)).float(), dim=-1, eps=_EPSILON)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.embed_image(self.image_encoder(images))

    def encode_text(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        return self.embed_text(self.text_encoder(token_ids, key_mask(mask)), mask)

    def match_tokens(self, patches: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        first = self.fusion(text, patches, key_mask(mask))[:, 0]
        return self.match_output(torch.tanh(self.match_transform(first))).squeeze(-1).float()

    def caption_logits(self, patches: Tensor, token_ids: Tensor) -> Tensor:
        fused = self.fusion(self.text_encoder(token_ids, causal=True), patches, causal=True)
        return self.text_encoder.logits(self.caption_norm(F.gelu(self.caption_transform(fused))))

    def forward(self, images: Tensor, token_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        patches, text = self.image_encoder(images), self.text_encoder(token_ids, key_mask(mask))
        return {
            "image_embedding": self.embed_image(patches),
            "text_embedding": self.embed_text(text, mask),
            "match_logits": self.match_tokens(patches, text, mask),
            "caption_logits": self.caption_logits(patches, token_ids),
        }


def key_mask(mask: Tensor) -> Tensor:
    """``bool[B, T]`` as a mask of attention scores ``[B, 1, 1, T]``."""
    return mask[:, None, None, :]


def compute_losses(model: TorchImageTextModel, batch: dict[str, Tensor], objective: Any) -> dict[str, Tensor]:
    """The three losses of a batch, before their weights; `objective` is that part of a recipe."""
    token_ids, mask, image_id = batch["token_ids"], batch["token_mask"], batch["image_id"]
    patches, text = model.image_encoder(batch["image"]), model.text_encoder(token_ids, key_mask(mask))
    image_embedding, text_embedding = model.embed_image(patches), model.embed_text(text, mask)
    similarity = model.scale * image_embedding @ text_embedding.T
    return {
        "contrastive": contrastive_loss(similarity, image_id, objective.contrastive.label_smoothing),
        "matching": matching_loss(model, patches, text, mask, similarity.detach(), image_id),
        "captioning": captioning_loss(
            model.caption_logits(patches, token_ids[:, :-1]), token_ids, mask, objective.captioning.label_smoothing
        ),
    }


def weighted_sum(losses: dict[str, Tensor], objective: Any) -> Tensor:
    """The loss that is minimised."""
    return sum(getattr(objective, name).weight * loss for name, loss in losses.items())


def contrastive_loss(similarity: Tensor, image_id: Tensor, label_smoothing: float) -> Tensor:
    """Softmax both ways; captions of one image are positives of each other."""
    same = (image_id[:, None] == image_id[None, :]).float()
    targets = same / same.sum(1, keepdim=True)
    rows = F.cross_entropy(similarity, targets, label_smoothing=label_smoothing)
    return 0.5 * (rows + F.cross_entropy(similarity.T, targets, label_smoothing=label_smoothing))


def matching_loss(
    model: TorchImageTextModel, patches: Tensor, text: Tensor, mask: Tensor, similarity: Tensor, image_id: Tensor
) -> Tensor:
    """Each pair, and with a hard negative in the place of its image and of its text."""
    negative = image_id[:, None] != image_id[None, :]
    image_index, text_index = draw_negatives(similarity.T, negative), draw_negatives(similarity, negative)
    logits = model.match_tokens(
        torch.cat([patches, patches[image_index], patches]),
        torch.cat([text, text, text[text_index]]),
        torch.cat([mask, mask, mask[text_index]]),
    )
    size = image_id.shape[0]
    labels = (torch.arange(3 * size, device=logits.device) < size).float()
    has_negative = negative.any(1).float()
    valid = torch.cat([torch.ones_like(has_negative), has_negative, has_negative])
    return F.binary_cross_entropy_with_logits(logits, labels, weight=valid, reduction="sum") / valid.sum()


def draw_negatives(similarity: Tensor, negative: Tensor) -> Tensor:
    """A wrong partner for each row, likelier the more similar (a draw from the softmax, by Gumbel noise)."""
    gumbel = -torch.log(-torch.log(torch.rand_like(similarity).clamp(1e-30, 1.0 - 1e-7)))
    return (similarity + gumbel).masked_fill(~negative, float("-inf")).argmax(1)


def captioning_loss(logits: Tensor, token_ids: Tensor, mask: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of each next token, a mean over the real ones."""
    targets = token_ids[:, 1:].long().masked_fill(~mask[:, 1:], -100)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), label_smoothing=label_smoothing)


def copy_weights(ours: ImageTextModel, twin: TorchImageTextModel) -> None:
    """Copies our weights into the twin."""
    with torch.no_grad():
        _copy_image_encoder(ours.image_encoder, twin.image_encoder)
        embedding = ours.text_encoder.token_embedding
        _copy(embedding.embedding, twin.text_encoder.embedding.weight)
        _copy(embedding.position, twin.text_encoder.position)
        _copy(embedding.output_bias, twin.text_encoder.output_bias)
        for part in ("image_encoder", "text_encoder", "fusion"):
            for block, twin_block in zip(getattr(ours, part).blocks, getattr(twin, part).blocks, strict=True):
                _copy_block(block, twin_block)
            _copy_norm(getattr(ours, part).norm, getattr(twin, part).norm)
        _copy_dense(ours.contrastive_head.image_projection, twin.image_projection)
        _copy_dense(ours.contrastive_head.text_projection, twin.text_projection)
        _copy(ours.contrastive_head.log_scale, twin.log_scale)
        _copy(ours.contrastive_head.bias, twin.bias)
        _copy_dense(ours.matching_head.transform, twin.match_transform)
        _copy_dense(ours.matching_head.output_dense, twin.match_output)
        _copy_dense(ours.captioning_head.transform, twin.caption_transform)
        _copy_norm(ours.captioning_head.norm, twin.caption_norm)


def _copy_image_encoder(ours: Any, twin: VisionEncoder) -> None:
    side, embedding = ours.patch_size, ours.patch_embedding
    kernel = torch.from_numpy(embedding.projection.kernel.numpy())
    twin.projection.weight.copy_(kernel.reshape(side, side, 3, -1).permute(3, 2, 0, 1))
    _copy(embedding.projection.bias, twin.projection.bias)
    _copy(embedding.position, twin.position)


def _copy_block(ours: Any, twin: Block) -> None:
    _copy_norm(ours.attention_norm, twin.attention_norm)
    attention = ours.attention
    projections = (attention.query_projection, attention.key_projection, attention.value_projection)
    _copy_dense(projections, twin.attention.qkv)
    _copy_dense(attention.output_projection, twin.attention.output)
    if twin.cross is not None:
        _copy_norm(ours.cross_norm, twin.cross_norm)
        _copy_dense(ours.cross.query_projection, twin.cross.query)
        _copy_dense((ours.cross.key_projection, ours.cross.value_projection), twin.cross.key_value)
        _copy_dense(ours.cross.output_projection, twin.cross.output)
    _copy_norm(ours.feed_forward_norm, twin.feed_forward_norm)
    _copy_dense(ours.feed_forward.hidden, twin.hidden)
    _copy_dense(ours.feed_forward.output_dense, twin.output)


def _copy(source: Any, target: Tensor) -> None:
    # A scalar's `numpy()` is no array.
    target.copy_(torch.as_tensor(source.numpy()))


def _copy_norm(ours: Any, twin: nn.LayerNorm) -> None:
    _copy(ours.gamma, twin.weight)
    _copy(ours.beta, twin.bias)


def _copy_dense(ours: Any, twin: nn.Linear) -> None:
    # Keras keeps [in, out], torch [out, in]; several of ours stand side by side in one of the twin's.
    parts = ours if isinstance(ours, tuple) else (ours,)
    twin.weight.copy_(torch.cat([torch.from_numpy(part.kernel.numpy()).T for part in parts]))
    if twin.bias is not None:
        twin.bias.copy_(torch.cat([torch.from_numpy(part.bias.numpy()) for part in parts]))


def build_twin(recipe: Recipe, ours: ImageTextModel, device: str = "cpu") -> TorchImageTextModel:
    """The twin of a model of ours, with its weights.

    Raises:
        ValueError: If the twin has another number of parameters.
    """
    twin = TorchImageTextModel(recipe, ours.text_encoder.vocabulary_size)
    found, expected = parameter_count(twin), ours.count_params()
    if found != expected:
        raise ValueError(f"the twin has {found:,} parameters, ours {expected:,}")
    copy_weights(ours, twin)
    return twin.to(device)


def parameter_count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def torch_batch(batch: dict[str, Any], device: str = "cpu") -> dict[str, Tensor]:
    """A batch of ours as torch has it: images ``[B, 3, H, W]``."""
    tensors = {name: torch.from_numpy(value).to(device) for name, value in batch.items()}
    return {**tensors, "image": tensors["image"].permute(0, 3, 1, 2).contiguous()}


def output_differences(ours: ImageTextModel, twin: TorchImageTextModel, batch: dict[str, Any]) -> dict[str, float]:
    """The largest difference of each output; of captions at real tokens, since padding sees other things in the twin."""
    device = str(next(twin.parameters()).device)
    tensors = torch_batch(batch, device)
    twin.eval()
    with torch.inference_mode():
        theirs = twin(tensors["image"], tensors["token_ids"], tensors["token_mask"])
    differences = {}
    for name, value in ours(batch, training=False).items():
        own, their = value.numpy(), theirs[name].cpu().numpy()
        if name == "caption_logits":
            own, their = own[batch["token_mask"]], their[batch["token_mask"]]
        differences[name] = float(abs(own - their).max())
    return differences


def main(arguments: list[str] | None = None) -> None:
    """Prints parameters and differences."""
    from common import add_recipe_arguments, build_ours, random_batch, read_recipe, use_same_device

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    options = parser.parse_args(arguments)
    recipe = read_recipe(options.recipe, options.overrides)
    device = use_same_device(torch, options.device)
    ours = build_ours(recipe, "float32")
    twin = build_twin(recipe, ours, device)
    print(f"parameters: {parameter_count(twin):,} in both")
    for name, difference in output_differences(ours, twin, random_batch(recipe, 4, options.seed)).items():
        print(f"{name}: largest difference {difference:.2g}")


if __name__ == "__main__":
    main()
