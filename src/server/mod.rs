//! HTTP: routes, state, accept loop, drain.
