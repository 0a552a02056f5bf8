"""The Fréchet distance for rungs: torch-fidelity's value on the same features in a fraction of the time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.scoring.reference import Reference


def frechet_distance(pooled: Tensor, reference: Reference, device: torch.device | None = None) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2))``, Heusel et al. (2017), equation 6, in float64.

    The trace of the root needs the eigenvalues of ``S1 S2``, which is not symmetric. With fewer samples n than
    features D, those that are not zero are the eigenvalues of the symmetric ``X S2 X^T`` of n by n, with the centred
    features ``X / sqrt(n - 1)``; else of the symmetric ``R S1 R``, with the cached root ``R`` of ``S2``, which is
    ``(X R)^T X R`` in 4 n D^2 FLOP, or ``R (X^T X) R`` in 2 n D^2 + 4 D^3: fewer where n > 2 D.

    Args:
        pooled: features of the generated images, shape (n, D), n > 1.
        reference: of the real images.
        device: where to compute; the CPU unless given.
    """
    features = pooled.to(device=device, dtype=torch.float64)
    n, width = features.shape
    mu = features.mean(dim=0)
    centred = (features - mu) / math.sqrt(n - 1)
    real_mu, sigma = (statistic.to(features.device) for statistic in (reference.mu, reference.sigma))
    if n < width:
        product = centred @ sigma @ centred.T
    else:
        root = reference.root.to(features.device)
        if n > 2 * width:
            product = root @ (centred.T @ centred) @ root
        else:
            rooted = centred @ root
            product = rooted.T @ rooted
    cross = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum()
    difference = mu - real_mu
    return float(difference @ difference + centred.square().sum() + sigma.trace() - 2 * cross)
