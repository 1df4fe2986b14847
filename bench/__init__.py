"""Speed as ratios, each measured in one run against the plain way of doing the same."""
