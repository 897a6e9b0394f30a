"""Evidence for people: tables, charts, pages, adapter cards and loggers. It decides nothing.

The names here are those that ``conf`` instantiates.
"""

from .loggers import FitProgress, WandbRunLogger

__all__ = ["FitProgress", "WandbRunLogger"]
