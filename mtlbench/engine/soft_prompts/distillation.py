"""What a student's answers lack of a teacher's (MPT, Wang et al. 2023, arXiv:2303.02861, eq. 4 and 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``KL(teacher || student)`` of each token ``[tokens]``, from logits ``[tokens, vocabulary]``."""
    own, taught = (_wide(logits).log_softmax(-1) for logits in (student, teacher))
    return F.kl_div(own, taught, reduction="none", log_target=True).sum(-1)


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of each token's hidden states ``[tokens]``, from ``[tokens, width]``."""
    return (_wide(student) - _wide(teacher)).square().mean(-1)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
