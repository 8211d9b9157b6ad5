//! Servers under limits.
