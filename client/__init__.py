"""What runs inside a hospital: its archive, its cache, its policy and the one door through which anything leaves."""
