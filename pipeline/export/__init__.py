"""A run as others read it: a data set in Parquet with its card, and a policy with its own."""
