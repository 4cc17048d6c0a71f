"""Clustering by density peaks among nearest neighbours, as SparseVLM v1.x merges with it."""

import numpy as np

from tests.methods.oracles.decoder.drops import best


def dpc_knn(
    points: np.ndarray, clusters: int, noise: np.ndarray | None = None
) -> tuple[list[int], list[int]]:
    """(centres, the cluster of each point); clusters are numbered as the centres are listed.

    Gumpest/SparseVLMs @ branch v1.5, 734d900. Distances are Euclidean over sqrt(C). Density is
    exp(-mean of the squared distances to the `clusters` nearest points, the point itself among
    them). Delta is the distance to the nearest point that is denser (strictly), or the largest of
    all distances where none is. Centres are the points with the largest delta x density, largest
    first. A point belongs to the nearest centre, a centre to itself. Ties: lowest index first.

    The release adds 1e-6 x uniform random numbers to the densities; here `noise` is added as given,
    and nothing by default, so that equal points are equally dense.

    Args:
        points: (n, C).
        clusters: how many, at most n.
        noise: (n,) or None.
    """
    points = np.asarray(points, np.float64)
    n, size = points.shape
    distance = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            gap = points[i] - points[j]
            distance[i, j] = np.sqrt(np.sum(gap * gap)) / np.sqrt(size)
    density = np.zeros(n)
    for i in range(n):
        nearest = sorted(distance[i])[:clusters]
        density[i] = np.exp(-np.mean([d * d for d in nearest]))
        if noise is not None:
            density[i] += noise[i]
    weight = []
    for i in range(n):
        denser = [distance[i, j] for j in range(n) if density[j] > density[i]]
        weight.append((min(denser) if denser else distance.max()) * density[i])
    centres = best(weight, clusters)
    groups = []
    for i in range(n):
        if i in centres:
            groups.append(centres.index(i))
        else:
            groups.append(best([-distance[i, c] for c in centres], 1)[0])
    return centres, groups
