"""The packaged recipes, and the functions they name."""
