"""One process per node: claims experiments, runs them in slots, writes back what came of them."""
