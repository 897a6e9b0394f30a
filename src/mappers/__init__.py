"""Mappers: one a file, each with its YAML in ``conf/mapper`` that names its class."""

from .base import Mapper, load_mapper

__all__ = ["Mapper", "load_mapper"]
