//! sim: not built yet.
