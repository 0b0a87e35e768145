"""Where arrays are held to lie, as the model asks for it: `constrain(x, names)`, and what each device does by itself.

`train.mesh.constrainer` makes the one of a mesh; on one device nothing is to be held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Anywhere:
    """The `constrain` of a model on one device."""

    def __call__(self, x, names: tuple[str, ...]):
        """x, whose axes have these logical names."""
        return x

    def by_rows(self, function: Callable, rows: Sequence, whole: Sequence) -> Any:
        """`function(*rows, *whole)`: of every device by itself, over its part of the leading axis, `batch`, of `rows`.

        The trees `whole` are the same on all of them. What `function` returns has the leading axis `batch`.
        """
        return function(*rows, *whole)


identity = Anywhere()
