"""Model, DeepSpeed engine, the loop that both stages share, checkpoints and logs."""
