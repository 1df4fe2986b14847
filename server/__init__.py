"""The consortium's side: rounds, admission, aggregation, the run directory and its report."""
