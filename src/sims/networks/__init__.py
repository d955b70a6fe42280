"""Raw networks F(x, c_noise, labels); they know nothing of noise schedules, guidance or training."""

from sims.networks.adm_unet import DhariwalUNet
from sims.networks.ddp_unet import DDPUNet
from sims.networks.dit import DiT
from sims.networks.edm2_unet import EDM2UNet, LossHead
from sims.networks.guided_unet import GuidedUNet
from sims.networks.mlp import MLP
from sims.networks.replica_mlp import ReplicaMLP
from sims.networks.song_unet import SongUNet

NETWORKS = {
    "mlp": MLP,
    "replica_mlp": ReplicaMLP,
    "song_unet": SongUNet,
    "adm_unet": DhariwalUNet,
    "edm2_unet": EDM2UNet,
    "dit": DiT,
    "guided_unet": GuidedUNet,
    "ddp_unet": DDPUNet,
}

__all__ = [
    "MLP",
    "NETWORKS",
    "DDPUNet",
    "DhariwalUNet",
    "DiT",
    "EDM2UNet",
    "GuidedUNet",
    "LossHead",
    "ReplicaMLP",
    "SongUNet",
]
