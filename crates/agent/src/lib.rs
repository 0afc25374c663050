//! agent: not built yet.
