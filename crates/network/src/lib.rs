//! network: not built yet.
