"""Online activation sparsity seen from the model's side: calibrated, and emulated.

Import functions from their modules: nothing is gathered here, so that importing the
package loads no torch.
"""
