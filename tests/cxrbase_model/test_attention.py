"""Cross-attention against a version that loops over pictures, heads and queries."""

from __future__ import annotations

import pytest
import torch

from cxrbase_model.attention import AttentivePool, CrossAttention, CrossBlock
from cxrbase_model.augment import normalise
from cxrbase_model.classifier import Classifier
from cxrbase_model.plan import ModelSpec
from cxrbase_model.predict import attention_maps
from cxrbase_model.vit import Encoder, initialise, patchify


def slow_attention(layer: CrossAttention, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    width = queries.shape[2]
    each = width // layer.heads
    out = torch.zeros_like(queries)
    for picture in range(len(queries)):
        q = layer.q(queries[picture])
        k, v = layer.kv(features[picture])[:, :width], layer.kv(features[picture])[:, width:]
        for head in range(layer.heads):
            part = slice(head * each, (head + 1) * each)
            for query in range(queries.shape[1]):
                shares = torch.softmax(k[:, part] @ q[query, part] / each**0.5, dim=0)
                out[picture, query, part] = shares @ v[:, part]
    projected: torch.Tensor = layer.proj(out)
    return projected


@pytest.mark.parametrize("fused", [True, False])
def test_cross_attention_equals_the_slow_version(fused: bool) -> None:
    layer = CrossAttention(16, 4)
    layer.fused_attn = fused
    queries, features = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            layer(queries, features), slow_attention(layer, queries, features), atol=1e-5, rtol=1e-4
        )


def test_a_query_of_a_cross_block_does_not_depend_on_the_others() -> None:
    block = CrossBlock(16, 4)
    queries, features = torch.randn(2, 6, 16), torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(block(queries, features)[:, :2], block(queries[:, :2], features))


def test_pooling_gives_one_vector_a_finding_whatever_the_number_of_patches() -> None:
    pool = AttentivePool(16, 4, findings=3)
    assert pool(torch.randn(2, 7, 16)).shape == pool(torch.randn(2, 9, 16)).shape == (2, 3, 16)


def test_attention_maps_are_where_the_pooling_looks() -> None:
    encoder = Encoder(ModelSpec(encoder="vit_micro", depth=1, patch_size=16), 64)
    model = Classifier(encoder, 3, "attentive")
    initialise(model, torch.Generator().manual_seed(0))
    images = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    maps = attention_maps(model, images)
    assert maps.shape == (2, 3, 4, 4)
    assert torch.allclose(maps.sum(dim=(2, 3)), torch.ones(2, 3))
    assert model.pool is not None
    attn = model.pool.attn
    with torch.no_grad():
        seen = model.encoder(
            patchify(normalise(images), 16)
        )  # values that are the features themselves make the pooling their mean under the map
        attn.heads = 1
        attn.kv.weight[128:], attn.kv.bias[128:] = torch.eye(128), 0
        attn.proj.weight.copy_(torch.eye(128))
        attn.proj.bias.zero_()
    expected = torch.einsum("bcn,bnd->bcd", attention_maps(model, images).flatten(2), seen)
    assert torch.allclose(model.pool(seen), expected, atol=1e-5)


def test_a_model_that_pools_by_the_mean_has_no_attention_to_show() -> None:
    model = Classifier(Encoder(ModelSpec(encoder="vit_micro", depth=1, patch_size=16), 64), 1)
    with pytest.raises(ValueError, match="pooling: expected attentive, found mean"):
        attention_maps(model, torch.zeros(1, 64, 64, dtype=torch.uint8))
