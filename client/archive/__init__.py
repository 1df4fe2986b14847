"""The hospital's archive, whatever it is, becomes a private training cache: pixels and labels, and no word about anyone."""
