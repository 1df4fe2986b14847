"""Secure aggregation (Bonawitz et al. 2017, CCS): what hospitals and server must agree on so that the server learns a sum alone."""
