//! placement: not built yet.
