"""The vocabulary of a round (records, config, store) and its light work. Imports no other package of the project."""
