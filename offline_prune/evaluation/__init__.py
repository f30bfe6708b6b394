"""Quality of a model: perplexity, fidelity, zero-shot tasks, length of answers.

Import functions from their modules (``evaluation.perplexity.perplexity``): nothing is
gathered here, so that importing the package loads no torch.
"""
