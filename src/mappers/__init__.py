"""Mappers: one a file, each with its YAML in ``conf/mapper`` that names its class."""

from .base import Mapper
from .learned import LearnedMapper, load_mapper
from .weight_mapper import BasePair, WeightMapper

__all__ = ["BasePair", "LearnedMapper", "Mapper", "WeightMapper", "load_mapper"]
