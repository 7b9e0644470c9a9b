"""Drawing a token from logits, exactly."""

import torch

from pipeline.protocols import Decoding
from pipeline.sampling.transformers import choose

from .conftest import decoded


def test_choosing_by_quantile_gives_each_token_its_share() -> None:
    """Exact, for a uniform grid of quantiles: no luck involved."""
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    n = 20_000
    quantiles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for decoding in (Decoding(1), Decoding(1, 0.3), Decoding(1, 2.0, 0.6), Decoding(1, 1.0, 0.9, 6), Decoding(1, 0.0)):
        shares = torch.bincount(choose(logits.expand(n, -1), quantiles, decoding), minlength=12) / n
        if decoding.temperature == 0.0:
            expected = torch.nn.functional.one_hot(logits[0].argmax(), 12).double()
        else:
            expected = decoded(logits[0].double().softmax(-1), decoding)
        assert (shares - expected).abs().max() <= 1.5 / n


def test_a_quantile_next_to_one_stays_inside_the_kept_tokens() -> None:
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    top = logits.argsort(-1, descending=True)[:, :3]
    chosen = choose(logits, torch.full((64,), 1 - 2**-53, dtype=torch.float64), Decoding(1, top_k=3))
    assert (chosen == top[:, 2]).all()
