"""Floating-point operations of training: a pure function of the shape, without torch."""

from photon_core.training.shapes import parameter_count
from schemas.model import Model


def flops_per_token(model: Model) -> float:
    """Floating-point operations of training on one token: 6 N + 12 L d T.

    Chowdhery et al. 2022 (PaLM), appendix B: 6 for each parameter that is multiplied with (forward and backward;
    the tied embedding counts once, as the head, and positions are only added), and 12 L H Q T for attention, whose
    causal half is not taken off.
    """
    multiplied = parameter_count(model) - model.max_seq_len * model.d_model
    return 6.0 * multiplied + 12.0 * model.n_layers * model.d_model * model.max_seq_len
