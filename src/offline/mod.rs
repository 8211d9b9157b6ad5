//! Conversions done once, before anything is served.

pub mod sentencepiece;
