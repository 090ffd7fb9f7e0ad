"""Frozen recipes by digest: fetched once, checked, and built into pipelines."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from shortstack.core.errors import Poison
from shortstack.declarations.recipe import parse_recipe, recipe_object
from shortstack.formatting.pipeline import Pipeline
from shortstack.storage.blobs import BlobStore

__all__ = ["Recipes"]

_KEPT: Final = 64


class Recipes:
    """Pipelines by the digest of their recipe. Recipes are immutable, so there is nothing to race with."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._pipelines: OrderedDict[str, Pipeline] = OrderedDict()
        self._lock = threading.Lock()

    def pipeline(self, digest: str) -> Pipeline:
        """The pipeline of a frozen recipe.

        Raises:
            Poison: there is no such recipe, or its steps are not those of this version of the stack.
        """
        with self._lock:
            if digest in self._pipelines:
                self._pipelines.move_to_end(digest)
                return self._pipelines[digest]
        recipe = parse_recipe(self._blobs.get(recipe_object(digest)))
        if recipe.digest() != digest:
            raise Poison(
                f"recipe {digest} reads as {recipe.digest()} here",
                remedy="Publish the dataset again, so that its recipe is frozen with this version's steps.",
            )
        pipeline = Pipeline(recipe)
        with self._lock:
            self._pipelines[digest] = pipeline
            while len(self._pipelines) > _KEPT:
                self._pipelines.popitem(last=False)
        return pipeline
