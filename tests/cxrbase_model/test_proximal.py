"""The proximal term against autograd's gradient of the term itself."""

from __future__ import annotations

import torch
from torch import nn

from cxrbase_model.proximal import proximal


def descended(strength: float, *, as_loss: bool) -> torch.Tensor:
    """The weights after five steps of SGD with the term in the loss, or pulled by `proximal`."""
    torch.manual_seed(0)
    model, inputs = nn.Linear(3, 2), torch.randn(8, 3)
    start = [each.detach().clone() for each in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with proximal(model, 0.0 if as_loss else strength):
        for _ in range(5):
            loss = (model(inputs) - 1).square().mean()
            if as_loss:
                away = [(each - first).square().sum() for each, first in zip(model.parameters(), start, strict=True)]
                loss = loss + strength / 2 * torch.stack(away).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def test_each_step_is_the_one_of_a_loss_with_the_term() -> None:
    torch.testing.assert_close(descended(0.7, as_loss=False), descended(0.7, as_loss=True))
    assert not torch.allclose(descended(0.7, as_loss=False), descended(0.0, as_loss=True), atol=1e-4)


def test_after_the_block_and_for_other_models_nothing_is_pulled() -> None:
    models = [nn.Linear(1, 1, bias=False) for _ in range(2)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=1.0) for model in models]

    def move(index: int) -> float:
        before = float(models[index].weight.detach())
        models[index].weight.grad = torch.ones(1, 1)
        optimizers[index].step()
        return float(models[index].weight.detach()) - before

    with proximal(models[0], 0.5):
        assert [round(move(0), 5), round(move(0), 5)] == [-1.0, -0.5]
        assert round(move(1), 5) == -1.0
    assert round(move(0), 5) == -1.0
