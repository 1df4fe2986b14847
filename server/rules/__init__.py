"""The aggregation rules: a round's admitted updates become one, and the server's step applies it."""
