"""Quality measured through the real engine: ``vllm-sparse eval``.

Import functions from their modules: nothing is gathered here, so that importing the
package loads neither vLLM nor torch.
"""
