"""The two apps that `bench.transport` compares, each a file that is shipped to Flower by itself."""
