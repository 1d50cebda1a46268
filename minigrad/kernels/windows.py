"""What both devices know of the windows of a pooling."""

from __future__ import annotations

Extents = tuple[int, ...]
Windows = tuple[Extents, Extents, Extents]  # kernel, stride, padding


def counts(space: Extents, kernel: Extents, stride: Extents, padding: Extents) -> Extents:
    """How many windows there are along each dimension.

    >>> counts((7, 6), (3, 2), (2, 1), (1, 0))
    (4, 5)
    """
    return tuple((s + 2 * p - k) // t + 1 for s, k, t, p in zip(space, kernel, stride, padding, strict=True))


def are_blocks(space: Extents, kernel: Extents, stride: Extents, padding: Extents) -> bool:
    """Do windows of two by two pixels cover the plane? Nearly all pooling and upsampling is that.

    >>> are_blocks((4, 6), (2, 2), (2, 2), (0, 0)), are_blocks((4, 5), (2, 2), (2, 2), (0, 0))
    (True, False)
    """
    return kernel == stride == (2, 2) and padding == (0, 0) and not any(n % 2 for n in space)
