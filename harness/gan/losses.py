"""The losses of Radford et al. (2016): binary cross-entropy on logits, non-saturating for the generator.

Goodfellow et al. (2014), section 3: the discriminator ascends ``log D(x) + log(1 - D(G(z)))``, the generator ascends
``log D(G(z))``. Here both are written as losses to descend, with ``D = sigmoid(logits)``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``mean BCE(real, 1 - label_smoothing) + mean BCE(fake, 0)``.

    Args:
        real_logits: D's logits of real images, shape (N,).
        fake_logits: D's logits of generated images, shape (N,).
        label_smoothing: one-sided, as in Salimans et al. (2016), section 3.4.

    Returns:
        A scalar.
    """
    # softplus(-x) = -log sigmoid(x). BCE is linear in its label, so smoothing adds a multiple of the logit.
    real = F.softplus(-real_logits).mean()
    if label_smoothing:
        real = real + label_smoothing * real_logits.mean()
    return real + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """``mean BCE(fake, 1)``: the non-saturating loss.

    Args:
        fake_logits: D's logits of generated images, shape (N,).

    Returns:
        A scalar.
    """
    return F.softplus(-fake_logits).mean()


class DiscriminatorLoss(nn.Module):
    """:func:`discriminator_loss` as a module."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return discriminator_loss(real_logits, fake_logits, self.label_smoothing)


class GeneratorLoss(nn.Module):
    """:func:`generator_loss` as a module."""

    def forward(self, fake_logits: Tensor) -> Tensor:
        return generator_loss(fake_logits)
