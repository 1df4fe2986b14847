"""The operations that the bench divides by, against a count of those that happen."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.flops import classifier_flops, mae_flops
from cxrbase_model.classifier import Classifier
from cxrbase_model.engine import Runtime
from cxrbase_model.mae import MaskedAutoencoder
from cxrbase_model.plan import ModelSpec
from cxrbase_model.vit import Encoder

PLAIN = Runtime(torch.device("cpu"), "bf16")  # attention by products that can be counted


@pytest.mark.parametrize(("decoder", "decode"), [("joint", 1.0), ("cross", 0.5)])
def test_masked_autoencoding_takes_as_many_as_are_counted(decoder: str, decode: float) -> None:
    spec = ModelSpec(encoder="vit_tiny", depth=3, decoder=decoder, decoder_width=128)
    model = MaskedAutoencoder(spec, 128)
    PLAIN.prepared(model)
    visible, hidden = model.random_masking(2, 0.75, torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counted:
        model(torch.randn(2, 128, 128), visible, hidden[:, : round(decode * 48)]).sum().backward()
    assert mae_flops(spec, 128, 0.75, decode=decode) == pytest.approx(counted.get_total_flops() / 2, rel=0.03)


def test_finetuning_takes_as_many_as_are_counted() -> None:
    spec = ModelSpec(encoder="vit_tiny", depth=3)
    model = Classifier(Encoder(spec, 128), 14)
    PLAIN.prepared(model)
    with FlopCounterMode(display=False) as counted:
        model(torch.randn(2, 128, 128)).sum().backward()
    assert classifier_flops(spec, 128, 14) == pytest.approx(counted.get_total_flops() / 2, rel=0.03)
