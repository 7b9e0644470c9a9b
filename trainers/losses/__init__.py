"""Preference losses: tensors in, a loss a pair out. One family a file, one function a loss, paper and equation cited.

`rewards` (log-ratios and implicit rewards), `sigmoid` (DPO and what only moves its margin: cDPO, robust,
length-normalised, ODPO, R-DPO, DPO-Positive, MODPO), `ipo`, `hinge`, `divergence` (f-DPO), `simpo`, `odds` (ORPO),
`cpo`, `nll` (RPO), `kto`, `bco`, `nca`, `exo`, `sppo`, `aot`, `apo`, `discopop`, `length` (LD-DPO), `wpo`, `tdpo`,
`beta_dpo`. `trainers.terms` picks one for a config.

Conventions: log-probabilities are summed over a completion's tokens, in nats, [pairs]; reduction is the caller's. β is
a number or one a pair. Without a reference, its log-probabilities are zeros. Every value and gradient is finite for
log-probabilities up to 1e12 nats, in float32 too.
"""
