"""Guidance: denoisers in, one denoiser out."""

from sims.guidance.extrapolate import CacheRule, Extrapolate, Recorder, Step

__all__ = ["CacheRule", "Extrapolate", "Recorder", "Step"]
