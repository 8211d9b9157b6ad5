//! Command line, environment and file to one configuration.
