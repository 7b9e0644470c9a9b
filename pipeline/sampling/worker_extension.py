"""What runs inside vLLM's worker: vLLM mixes this class into its own (``worker_extension_cls``)."""

from typing import Any


class CheckpointLoader:
    """Gives a vLLM worker one more method."""

    model_runner: Any
    reload_weights: Any

    def load_checkpoint(self, path: str) -> None:
        """Replace the served weights by the checkpoint at ``path``, of the same architecture.

        On CPU a tied ``lm_head`` keeps a packed copy of the old embedding through a reload, without a word; it has
        to be packed again.
        """
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
        from vllm.platforms import current_platform

        self.reload_weights(weights_path=path)
        if current_platform.is_cpu():
            for module in self.model_runner.get_model().modules():
                if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
                    dispatch_cpu_unquantized_gemm(module, remove_weight=False)
