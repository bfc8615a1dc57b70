"""The best one-to-one assignment between two small sets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assign(affinity: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return the pairs of rows and columns with the largest total affinity, in order of rows; 0 forbids a pair.

    The Hungarian method with shortest augmenting paths (H. Kuhn, 1955; R. Jonker and A. Volgenant, "A shortest
    augmenting path algorithm for dense and sparse linear assignment problems", Computing 1987). SciPy has it, too,
    but is not a dependency of the client.
    """
    rows, columns = affinity.shape
    if rows > columns:
        return sorted((row, column) for column, row in assign(affinity.T))
    cost = -affinity
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)
    for new_row in range(rows):
        # Grow a tree of cheapest paths from the new row until a free column is reached.
        distance, came_from = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, dtype=bool)
        row, reached, column = new_row, 0.0, -1
        while True:
            path = reached + cost[row] - row_price[row] - column_price
            shorter = ~done & (path < distance)
            distance[shorter], came_from[shorter] = path[shorter], column
            column = int(np.where(done, np.inf, distance).argmin())
            done[column], reached = True, float(distance[column])
            if owner[column] < 0:
                break
            row = int(owner[column])
        # Prices under which every assigned pair stays a best offer.
        slack = reached - distance[done]
        taken = owner[done]
        column_price[done] -= slack
        row_price[taken[taken >= 0]] += slack[taken >= 0]
        row_price[new_row] += reached
        while column >= 0:
            before = int(came_from[column])
            owner[column] = new_row if before < 0 else owner[before]
            column = before
    return sorted((int(row), column) for column, row in enumerate(owner) if row >= 0 and affinity[row, column] > 0)
