"""Mappers: classes that turn a source adapter into a target adapter; docs/mappers.md has cards."""

from .base import BasePair, LearnedMapper, Mapper, WeightMapper, load_mapper

__all__ = ["BasePair", "LearnedMapper", "Mapper", "WeightMapper", "load_mapper"]
