"""The rounds, put together from pipeline, judges and trainers. Read ``online.py`` first."""

from flows import environment

environment.prepare()  # before anything below this package imports Prefect or transformers
