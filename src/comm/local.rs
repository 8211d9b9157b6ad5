//! A group of one rank, and groups of CPU threads of one process.
