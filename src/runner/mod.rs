//! Executes step plans.
