"""The losses of Radford et al. (2016): binary cross-entropy on logits, non-saturating for the generator.

Goodfellow et al. (2014), section 3: the discriminator ascends ``log D(x) + log(1 - D(G(z)))``, the generator ascends
``log D(G(z))``. Here both are written as losses to descend, with ``D = sigmoid(logits)``.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def real_loss(real_logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``mean BCE(real, 1 - label_smoothing)`` over D's logits of N real images, shape (N,): a scalar. (N, K) gives K.

    Smoothing is one-sided, as in Salimans et al. (2016), section 3.4.
    """
    # softplus(-x) = -log sigmoid(x). BCE is linear in its label, so smoothing adds a multiple of the logit.
    loss = F.softplus(-real_logits).mean(0)
    return loss + label_smoothing * real_logits.mean(0) if label_smoothing else loss


def fake_loss(fake_logits: Tensor) -> Tensor:
    """``mean BCE(fake, 0)`` over D's logits of N generated images, shape (N,): a scalar. (N, K) gives K."""
    return F.softplus(fake_logits).mean(0)


def generator_loss(fake_logits: Tensor) -> Tensor:
    """``mean BCE(fake, 1)``: the non-saturating loss.

    Args:
        fake_logits: D's logits of generated images, shape (N,), or (N, K) of K generators.

    Returns:
        The mean over N: a scalar, or shape (K,).
    """
    return F.softplus(-fake_logits).mean(0)
