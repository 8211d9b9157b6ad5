//! Tests of smollm2.
