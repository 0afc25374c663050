//! identity: not built yet.
