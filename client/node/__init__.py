"""What keeps a hospital in touch with its consortium: Flower's SuperNode, the processes beside it, and the daemon that watches them."""
