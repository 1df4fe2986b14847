"""Many hospitals on one machine, for researchers; never shipped to a hospital."""
