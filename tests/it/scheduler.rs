//! Tests of scheduler.
