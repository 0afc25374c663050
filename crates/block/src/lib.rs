//! block: not built yet.
