"""Floating-point operations: of training, a pure function of the shape, and of devices, by name; without torch."""

from photon_core.model.shapes import parameter_count
from schemas.sections.model import Model

# TFLOP/s in dense bfloat16, by NVIDIA; the first that a device's name contains
PEAKS = {"H100": 989.4, "H200": 989.4, "A100": 312.0, "GB200": 2500.0, "B200": 2250.0}
OTHERS = ("PCIe", "NVL", "MIG")  # cards of lower clocks, and parts of a GPU


def peak_tflops(device: str) -> float | None:
    """A GPU's peak in dense bfloat16, in 10^12 FLOP/s, by its name; None if it is not known here."""
    if any(other in device for other in OTHERS):
        return None
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def flops_per_token(model: Model) -> float:
    """Floating-point operations of training on one token: 6 N + 12 L d T.

    Chowdhery et al. 2022 (PaLM), appendix B: 6 for each parameter that is multiplied with (forward and backward;
    the tied embedding counts once, as the head, and positions are only added), and 12 L H Q T for attention, whose
    causal half is not taken off.
    """
    multiplied = parameter_count(model) - model.max_seq_len * model.d_model
    return 6.0 * multiplied + 12.0 * model.n_layers * model.d_model * model.max_seq_len
