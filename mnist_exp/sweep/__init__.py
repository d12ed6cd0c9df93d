"""What Hydra calls when it runs many jobs."""
