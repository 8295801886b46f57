"""ConsistentEE's phase 2 by itself, for notebook 05.

The encoder is frozen, so what it says is computed once and policies are learned in a second: seeds, speed weights and
kinds of gradient can be compared that would otherwise take hours.
"""

from dataclasses import replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from eeutils.exiting.evidence import Evidence
from eeutils.papers.consistentee import ESTIMATES, POLICY_RATE, Gradient, log_leaving, policy_network


def learn_policies(
    features: Float[Tensor, "stages samples width"],
    reward: Float[Tensor, "stages samples"],
    *,
    gradient: Gradient,
    seed: int,
    epochs: int = 4,
    batch_size: int = 32,
    watch_every: int = 5,
) -> tuple[nn.ModuleList, pd.DataFrame]:
    """Phase 2 on frozen features.

    Returns:
        The policy networks, and a learning curve with one row every `watch_every` steps: step, reward (expected, over
        all samples and exits), layers (expected number of exits passed, the one taken included).
    """
    stages, samples, width = features.shape
    curve = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = nn.ModuleList(policy_network(width, stages - 1 - stage) for stage in range(stages))
        optimizer = torch.optim.AdamW(networks.parameters(), lr=POLICY_RATE, weight_decay=0.01)
        steps = [rows for _ in range(epochs) for rows in torch.randperm(samples).split(batch_size)]
        for step, rows in enumerate(steps):
            if step % watch_every == 0:
                curve.append({"step": step, **_expected(networks, features, reward)})
            loss, _ = ESTIMATES[gradient](policy_logits(networks, features[:, rows]), reward[:, rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
            optimizer.step()
    curve.append({"step": len(steps), **_expected(networks, features, reward)})
    return networks, pd.DataFrame(curve)


def policy_logits(
    networks: nn.ModuleList, features: Float[Tensor, "stages samples width"]
) -> Float[Tensor, "stages samples"]:
    """The logit of leaving at each exit."""
    return torch.stack([network(vectors)[:, 0] for network, vectors in zip(networks, features, strict=True)])


@torch.no_grad()
def with_policies(
    evidence: Evidence, networks: nn.ModuleList, features: Float[Tensor, "stages samples width"]
) -> Evidence:
    """The same answers with other policies; `features` are of the evidence's samples, in its order."""
    return replace(evidence, extras={**evidence.extras, "policy": policy_logits(networks, features).sigmoid()})


@torch.no_grad()
def _expected(networks: nn.ModuleList, features: Tensor, reward: Tensor) -> dict[str, float]:
    probability = log_leaving(policy_logits(networks, features)).exp()
    numbers = torch.arange(1, len(reward) + 1, dtype=probability.dtype)[:, None]
    return {
        "reward": (probability * reward).sum(dim=0).mean().item(),
        "layers": (probability * numbers).sum(dim=0).mean().item(),
    }
