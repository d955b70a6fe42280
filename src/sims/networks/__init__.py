"""Raw networks F(x, c_noise, labels); they know nothing of noise schedules, guidance or training."""

from sims.networks.mlp import MLP

NETWORKS = {"mlp": MLP}

__all__ = ["MLP", "NETWORKS"]
