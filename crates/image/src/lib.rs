//! image: not built yet.
