"""The audit: what an update or a model gives away of the pictures behind it, measured by attacks."""
