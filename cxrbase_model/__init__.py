"""What the consortium and its hospitals must agree on bit for bit: plan, model, objective, update arithmetic, wire."""

__version__ = "0.1.0"
