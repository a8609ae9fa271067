"""How attention is cut up: regions, tiles, their order and the index maps, in closed form."""
