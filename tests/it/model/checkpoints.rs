//! FP8 checkpoints in every scheme.
