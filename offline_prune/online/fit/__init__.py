"""Learned parameters of the mitigations, fitted to what the dense layer would give.

Closed forms, one file each, in the order in which they are fitted: the shift (``s_pts``
or ``l_pts``), ``output_scale``, ``low_rank``, ``output_shift``. Each works on what the
ones before it left. Then, if asked for, gradient steps on all of them (``gradient``).

Our formulation, because plain means and least squares fail on real models: the first
token of a window (an attention sink) and a few others carry activations a thousand
times larger, and an output shift fitted as the plain mean residual made Gemma-3-270M
much worse. So

* position 0 is left out, and a token weighs ``1 / |dense output|^2``, at most
  ``weight_clip`` times the median of its window: errors count relative to a token;
* the target is the dense layer on the same input of the sparse stream (as in arXiv
  2509.22166), or by option the dense stream's own output;
* every part passes a gate: it is kept only if it lowers this robust error of the whole
  block's output on calibration windows that no fit has seen (the last quarter).
  Otherwise its neutral value, zeros, is stored, and the record says so.

Import functions from their modules: importing the package loads no torch.
"""
