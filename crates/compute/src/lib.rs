//! compute: not built yet.
