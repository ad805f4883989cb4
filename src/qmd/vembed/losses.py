"""The losses, all of sentence-transformers: chosen, cached and wrapped as the options say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qmd.errors import ConfigError
from qmd.vembed.config import TrainConfig

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def build_loss(model: SentenceTransformer, config: TrainConfig, *, ranks: int = 1) -> Any:
    """InfoNCE and its kin over in-batch negatives, or a pairwise loss; Matryoshka around it.

    The gradient cache (Gao et al. 2021) gives the gradient of the whole batch in the memory of one chunk.
    """
    from sentence_transformers.sentence_transformer import losses

    gather = ranks > 1
    loss: Any
    if config.loss_type in ("infonce", "symmetric_infonce"):
        options: dict[str, Any] = {"gather_across_devices": gather}
        if config.false_negative_margin is not None:
            options |= {
                "guide": model,
                "temperature": config.temperature,
                "margin": config.false_negative_margin,
            }
            kind = losses.CachedGISTEmbedLoss if config.use_gradient_cache else losses.GISTEmbedLoss
            options |= {"contrast_anchors": False, "contrast_positives": False}
        else:
            options["scale"] = 1.0 / config.temperature
            kind = (
                losses.CachedMultipleNegativesRankingLoss
                if config.use_gradient_cache
                else losses.MultipleNegativesRankingLoss
            )
            if config.loss_type == "symmetric_infonce":
                options |= {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
            if config.hardness_weight:
                options |= {
                    "hardness_mode": "in_batch_negatives",
                    "hardness_strength": config.hardness_weight,
                }
        if config.use_gradient_cache:
            options["mini_batch_size"] = config.gradient_cache_chunk_size
        try:
            loss = kind(model, **options)
        except ValueError as error:  # the library's guided loss wants a tokenizer of transformers
            raise ConfigError(f"loss_type {config.loss_type} does not fit this model: {error}") from error
    else:
        if config.use_gradient_cache:
            raise ConfigError(f"use_gradient_cache works with infonce losses, not with {config.loss_type}.")
        loss = {
            "cosent": lambda: losses.CoSENTLoss(model, scale=1.0 / config.temperature),
            "triplet": lambda: losses.TripletLoss(model),
            "sigmoid": lambda: SigmoidLoss(model, config.temperature),
            "distillation": lambda: losses.MarginMSELoss(model),
        }[config.loss_type]()
    if config.use_mrl:
        full = int(model.get_embedding_dimension() or 0)
        dims = sorted({dim for dim in config.mrl_dims if dim <= full} | {full}, reverse=True)
        # The mean over sizes, so that one temperature, rate and clipping norm fits runs with and without.
        loss = losses.MatryoshkaLoss(
            model, loss, matryoshka_dims=dims, matryoshka_weights=[1.0 / len(dims)] * len(dims)
        )
    return loss


def SigmoidLoss(model: SentenceTransformer, temperature: float) -> Any:
    """Pairwise sigmoid loss with learned temperature and bias (Zhai et al. 2023), one scale for text and image."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    class _Sigmoid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.log_scale = nn.Parameter(torch.tensor(1.0 / temperature).log())
            self.bias = nn.Parameter(torch.tensor(-10.0))

        def forward(self, sentence_features: Any, labels: Tensor | None = None) -> Tensor:
            query, positive, *_ = (self.model(part)["sentence_embedding"] for part in sentence_features)
            logits = F.normalize(query, dim=-1) @ F.normalize(positive, dim=-1).T  # (B, B)
            logits = logits * self.log_scale.exp() + self.bias
            signs = 2 * torch.eye(len(logits), device=logits.device) - 1
            return -F.logsigmoid(signs * logits).sum() / len(logits)

    return _Sigmoid()
