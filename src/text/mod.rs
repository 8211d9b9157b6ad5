//! Strings to tokens and back.
