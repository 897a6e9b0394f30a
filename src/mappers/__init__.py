"""Mappers: one a file, each with its YAML in ``conf/mapper`` that names its class."""

from .base import BasePair, LearnedMapper, Mapper, WeightMapper, load_mapper

__all__ = ["BasePair", "LearnedMapper", "Mapper", "WeightMapper", "load_mapper"]
