//! api: not built yet.
